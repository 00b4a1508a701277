"""`PeftModel` for the tasks of transformers models: which head trains with the adapter, what `forward` takes.

`get_peft_model` and `PeftModel.from_pretrained` choose among the classes by the config's `task_type`; each
can be made directly as well.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from .config import PeftConfig
from .model import PeftModel


class _TaskModel(PeftModel):
    """A model whose forward pass has the arguments of its task by name."""

    def _given(self, **arguments: Any) -> dict[str, Any]:
        """The arguments that the base model is called with: it need not know those that nobody gave."""
        if not self.base_model.takes_task_ids:
            del arguments["task_ids"]
        return {name: value for name, value in arguments.items() if value is not None}


class _LabelledModel(_TaskModel):
    """A model whose forward takes a sequence and, for the loss, labels."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        task_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """The base model's output, with `loss` if there are labels. What is None is not passed on.

        Shapes: `input_ids` and `attention_mask` [batch, length], `inputs_embeds` [batch, length, hidden].
        `task_ids` [batch] is for methods that take them, such as Poly, and else not used.
        """
        return super().forward(
            **self._given(
                input_ids=input_ids,
                attention_mask=attention_mask,
                inputs_embeds=inputs_embeds,
                labels=labels,
                output_attentions=output_attentions,
                output_hidden_states=output_hidden_states,
                return_dict=return_dict,
                task_ids=task_ids,
            ),
            **kwargs,
        )


class _GeneratingModel(_TaskModel):
    """A language model, with `generate`. AttributeError for a base model that cannot generate."""

    def __init__(
        self, model: nn.Module, peft_config: PeftConfig, adapter_name: str = "default", **kwargs: Any
    ) -> None:
        if not hasattr(model, "prepare_inputs_for_generation"):
            raise AttributeError(
                f"{type(self).__name__} is for language models of transformers, which can generate; this "
                f"{type(model).__name__} has no `prepare_inputs_for_generation`."
            )
        super().__init__(model, peft_config, adapter_name, **kwargs)

    def prepare_inputs_for_generation(
        self, *args: Any, task_ids: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """What the base model's forward is given for the next token; `task_ids` is not used."""
        return self.get_base_model().prepare_inputs_for_generation(*args, **kwargs)  # type: ignore[operator]


class PeftModelForCausalLM(_GeneratingModel, _LabelledModel):
    """For causal language models; only the adapter is trained."""


class PeftModelForSeq2SeqLM(_GeneratingModel):
    """For encoder-decoder language models; only the adapter is trained."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        decoder_input_ids: Tensor | None = None,
        decoder_attention_mask: Tensor | None = None,
        decoder_inputs_embeds: Tensor | None = None,
        labels: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        task_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """The base model's output; without decoder inputs it makes them from the labels."""
        return super().forward(
            **self._given(
                input_ids=input_ids,
                attention_mask=attention_mask,
                inputs_embeds=inputs_embeds,
                decoder_input_ids=decoder_input_ids,
                decoder_attention_mask=decoder_attention_mask,
                decoder_inputs_embeds=decoder_inputs_embeds,
                labels=labels,
                output_attentions=output_attentions,
                output_hidden_states=output_hidden_states,
                return_dict=return_dict,
                task_ids=task_ids,
            ),
            **kwargs,
        )


class PeftModelForSequenceClassification(_LabelledModel):
    """For classifiers of sequences; the head, `classifier` or `score`, is trained with the adapter."""

    head_names = ("classifier", "score")


class PeftModelForTokenClassification(_LabelledModel):
    """For classifiers of tokens; the head, `classifier` or `score`, is trained with the adapter."""

    head_names = ("classifier", "score")


class PeftModelForQuestionAnswering(_TaskModel):
    """For extractive question answering; the head `qa_outputs` is trained with the adapter."""

    head_names = ("qa_outputs",)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        start_positions: Tensor | None = None,
        end_positions: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        task_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """The base model's output: logits of where the answer starts and ends, [batch, length] each."""
        return super().forward(
            **self._given(
                input_ids=input_ids,
                attention_mask=attention_mask,
                token_type_ids=token_type_ids,
                position_ids=position_ids,
                inputs_embeds=inputs_embeds,
                start_positions=start_positions,
                end_positions=end_positions,
                output_attentions=output_attentions,
                output_hidden_states=output_hidden_states,
                return_dict=return_dict,
                task_ids=task_ids,
            ),
            **kwargs,
        )


class PeftModelForFeatureExtraction(_TaskModel):
    """For encoders whose hidden states are the output; only the adapter is trained."""

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        task_ids: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """The base model's output; `last_hidden_state` has the shape [batch, length, hidden]."""
        return super().forward(
            **self._given(
                input_ids=input_ids,
                attention_mask=attention_mask,
                inputs_embeds=inputs_embeds,
                output_attentions=output_attentions,
                output_hidden_states=output_hidden_states,
                return_dict=return_dict,
                task_ids=task_ids,
            ),
            **kwargs,
        )


MODEL_TYPE_TO_PEFT_MODEL_MAPPING: dict[str, type[PeftModel]] = {
    "SEQ_CLS": PeftModelForSequenceClassification,
    "SEQ_2_SEQ_LM": PeftModelForSeq2SeqLM,
    "CAUSAL_LM": PeftModelForCausalLM,
    "TOKEN_CLS": PeftModelForTokenClassification,
    "QUESTION_ANS": PeftModelForQuestionAnswering,
    "FEATURE_EXTRACTION": PeftModelForFeatureExtraction,
}
