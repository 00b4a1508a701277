"""Small functions that some reproduction scripts carry with them: `script` copies the source of those it
needs.

Plain torch and the standard library, nothing of ours. The script defines `SLOTS`, the containers of adapters'
tensors.
"""

from __future__ import annotations

import enum
import inspect
import itertools
import json
from typing import Any

import torch

SLOTS: tuple[str, ...] = ()


def low_rank(matrix: torch.Tensor, r: int) -> torch.Tensor:
    """The closest matrix of rank r: the r largest singular values and their vectors."""
    u, s, v = torch.linalg.svd(matrix, full_matrices=False)
    return (u[:, :r] * s[:r]) @ v[:r]


def minor_space(matrix: torch.Tensor, r: int) -> torch.Tensor:
    """The projection (out, out) onto the left singular vectors of the r smallest singular values."""
    u = torch.linalg.svd(matrix, full_matrices=False)[0][:, -r:]
    return u @ u.mT


def one(matrix: torch.Tensor) -> torch.Tensor:
    """The identity of a square matrix's size."""
    return torch.eye(matrix.shape[-1], dtype=matrix.dtype)


def rms(matrix: torch.Tensor) -> torch.Tensor:
    """The root of the mean square of all entries."""
    return matrix.square().mean().sqrt()


def reshape(x: torch.Tensor, *sizes: float) -> torch.Tensor:
    """The same entries in another shape, in which -1 is what is left."""
    return x.reshape([int(size) for size in sizes])


def shorten(rows: torch.Tensor, most: float) -> torch.Tensor:
    """Rows that are longer than `most`, at that length."""
    return rows * (most / rows.norm(dim=-1, keepdim=True)).clamp(max=1)


def neumann(q: torch.Tensor, k: int) -> torch.Tensor:
    """I + 2Q + 2Q² + … + Qᵏ."""
    powers = [torch.linalg.matrix_power(q, i) for i in range(k + 1)]
    return torch.stack([*powers[:k], *powers[1:]]).sum(0)  # (I + … + Qᵏ⁻¹) + (Q + … + Qᵏ)


def householder(vectors: torch.Tensor) -> torch.Tensor:
    """The product, from left to right, of the reflections that turn the columns of a matrix around."""
    product = torch.eye(len(vectors), dtype=vectors.dtype)
    for v in vectors.mT:
        product = product - 2 * torch.outer(product @ v, v) / (v @ v)
    return product


def butterfly(factors: torch.Tensor) -> torch.Tensor:
    """F_m·…·F₁ of blocks (m, blocks, n, n): factor i + 1 cuts the entries into runs of 2^i·n, and block j of
    a run's 2^i acts on its entries j·n/2 and following, n/2 of each half.
    """
    n, size = factors.shape[-1], factors.shape[1] * factors.shape[2]
    half = n // 2
    product = torch.eye(size, dtype=factors.dtype)
    for i, blocks in enumerate(factors):
        factor = torch.zeros_like(product)
        for j, block in enumerate(blocks):
            start = j // 2**i * 2**i * n + j % 2**i * half
            at = torch.tensor([start + t + (t >= half) * (2**i - 1) * half for t in range(n)])
            factor[at[:, None], at] = block
        product = factor @ product
    return product


def quarter(pairs: torch.Tensor) -> torch.Tensor:
    """Each pair (x, y) of dimension 1 turned by a quarter: (-y, x)."""
    return torch.stack((-pairs[:, 1], pairs[:, 0]), 1)


def plain(x: Any) -> Any:
    """Enums, dtypes, sets and tuples as strings and lists."""
    if isinstance(x, enum.Enum):
        return plain(x.value)
    if isinstance(x, dict):
        return {str(plain(key)): plain(value) for key, value in x.items()}
    if isinstance(x, (set, frozenset)):
        return sorted(map(plain, x), key=repr)
    if isinstance(x, (list, tuple)):
        return [plain(value) for value in x]
    if isinstance(x, type):
        return {"class": x.__name__}
    return x if x is None or isinstance(x, (bool, int, float, str)) else str(x).removeprefix("torch.")


def train(model: Any, batch: Any, steps: int, gradient_checkpointing: bool, folder: Any) -> None:
    """Train `model` on one batch under transformers' Trainer, which writes nothing but into `folder`."""
    from transformers import PrinterCallback, Trainer, TrainingArguments

    size = len(next(iter(batch.values())))
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=size,
        learning_rate=0.01,
        lr_scheduler_type="constant",
        gradient_checkpointing=gradient_checkpointing,
        remove_unused_columns=False,  # the Trainer looks into upstream's classes for what they use
        save_strategy="no",
        logging_strategy="no",
        report_to=[],
        disable_tqdm=True,
        log_level="critical",
        use_cpu=True,
    )
    rows: Any = [{key: value[i] for key, value in batch.items()} for i in range(size)]
    trainer = Trainer(model=model, args=arguments, train_dataset=rows)
    trainer.remove_callback(PrinterCallback)
    trainer.train()


def card_metadata(path: Any) -> Any:
    """The YAML in front of a model card."""
    import yaml

    return yaml.safe_load(path.read_text().split("---")[1])


def card_lines(path: Any) -> list[str]:
    """The lines of a model card."""
    lines: list[str] = path.read_text().splitlines()
    return lines


def items(x: Any) -> Any:
    """Names and tensors of a model, a state dict or a single tensor."""
    if isinstance(x, torch.nn.Module):
        return [*x.named_parameters(remove_duplicate=False), *x.named_buffers(remove_duplicate=False)]
    return x.items() if isinstance(x, dict) else [("", x)]


def signature_lines(function: Any) -> list[str]:
    """The parameters of a function, one a line, without `self`."""
    lines = []
    for p in inspect.signature(function).parameters.values():
        default = plain(p.default)
        text = (
            ""
            if p.default is p.empty
            else f" = {default if isinstance(default, str) else json.dumps(default)}"
        )
        star = "*" * (p.kind is p.VAR_POSITIONAL) + "**" * (p.kind is p.VAR_KEYWORD)
        lines.append(f"{star}{p.name}{text}{' (keyword only)' if p.kind is p.KEYWORD_ONLY else ''}")
    return [line for line in lines if line != "self"]


def state_dict_lines(x: Any) -> list[str]:
    """Names, shapes and dtypes."""
    return sorted(f"{name} {list(p.shape)} {plain(p.dtype)}" for name, p in items(x))


def module_tree_lines(model: torch.nn.Module) -> list[str]:
    """Every module with its tensors; of an adapted layer its place, its slots and what it wraps."""
    modules = dict(model.named_modules(remove_duplicate=False))
    layers = [n for n, m in modules.items() if hasattr(m, "base_layer") and hasattr(m, "active_adapters")]
    lines = []
    for name, module in modules.items():
        owner = next((layer for layer in reversed(layers) if name.startswith(f"{layer}.")), None)
        if owner is not None and name[len(owner) + 1 :].split(".")[0] != "base_layer":
            continue
        if name in layers:
            slots = []
            for path, p in module.state_dict(keep_vars=True).items():
                slot, _, rest = path.partition(".")
                adapter, _, tensor = rest.partition(".")
                if slot in SLOTS:
                    slots.append(f"{name}: {slot}{'.' if tensor else ''}{tensor}[{adapter}] {list(p.shape)}")
            lines += [f"{name}: adapted", *sorted(slots)]
        else:
            own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
            shapes = [f"{n} {list(p.shape)}" for n, p in own]
            lines.append(" ".join([f"{name or '(root)'}:", type(module).__name__, *shapes]))
    return lines


def norm(x: torch.Tensor) -> torch.Tensor:
    """The length of each row."""
    return x.norm(dim=-1)


def transpose(x: torch.Tensor) -> torch.Tensor:
    """The matrix with its last two dimensions swapped."""
    return x.mT


def split(x: torch.Tensor, n: int) -> torch.Tensor:
    """The first dimension as n equal groups."""
    return x.unflatten(0, (n, -1))


def stack(x: torch.Tensor) -> torch.Tensor:
    """A stack of matrices as one, each below the one before."""
    return x.flatten(0, 1)


def softmax(x: torch.Tensor) -> torch.Tensor:
    """Of each row."""
    return x.softmax(-1)


def with_rows(x: torch.Tensor, rows: float) -> torch.Tensor:
    """A matrix as it is if it has so many rows, else its transpose."""
    return x if len(x) == rows else x.mT


def topk_softmax(x: torch.Tensor, k: float) -> torch.Tensor:
    """Of each row, the softmax of its k largest entries, zeros elsewhere."""
    places = x.argsort(dim=-1, descending=True)[..., : int(k)]
    kept = torch.full_like(x, -torch.inf).scatter(-1, places, x.gather(-1, places))
    return kept.softmax(-1)


def sigmoid(x: torch.Tensor) -> torch.Tensor:
    """Of each entry."""
    return x.sigmoid()


def shares(x: torch.Tensor) -> torch.Tensor:
    """Each entry divided by the sum of its row."""
    return x / x.sum(-1, keepdim=True)


def mean_row(x: torch.Tensor) -> torch.Tensor:
    """The mean of the rows."""
    return x.mean(0)


def weighted(weights: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """The sum of matrices, (..., k, rows, columns), each times its weight, (..., k)."""
    return (weights[..., None, None] * x).sum(-3)


def repeat(x: torch.Tensor, n: int) -> torch.Tensor:
    """Each entry n times, side by side."""
    return x.repeat_interleave(n, -1)


def scatter(rows: int, columns: int, at: torch.Tensor, values: torch.Tensor) -> torch.Tensor:
    """A matrix of zeros but for `values` at index pairs (2, n), or at places of the flattened matrix (n)."""
    places = at.long() if at.ndim == 1 else at[0].long() * columns + at[1].long()
    flat = torch.zeros(rows * columns, dtype=torch.float64)
    return flat.index_add(0, places, values).reshape(rows, columns)


def drawn_places(seed: int, rows: int, columns: int, n: int) -> torch.Tensor:
    """Index pairs (2, n) of entries of a matrix: the first of all its places, shuffled by torch's generator
    on the CPU with this seed. That is what files of FourierFT and WaveFT mean, which say the seed only.
    """
    at = torch.randperm(rows * columns, generator=torch.Generator().manual_seed(seed))[:n]
    return torch.stack([torch.div(at, columns, rounding_mode="floor"), torch.remainder(at, columns)])


def replace_rows(x: torch.Tensor, at: torch.Tensor, rows: torch.Tensor) -> torch.Tensor:
    """The matrix with other rows at these places."""
    x = x.clone()
    x[at.long()] = rows
    return x


def circulant(k: torch.Tensor) -> torch.Tensor:
    """For each vector in the last dimension the matrix whose row a is the vector moved a places on."""
    return torch.stack([k.roll(a, -1) for a in range(k.shape[-1])], -2)


def blocks(x: torch.Tensor) -> torch.Tensor:
    """The matrix with these blocks, (rows, columns, n, m)."""
    return torch.cat([torch.cat([*row], 1) for row in x])


def inverse_fourier(x: torch.Tensor) -> torch.Tensor:
    """The real part of the inverse discrete Fourier transform, as the sum that defines it."""
    n, m = x.shape
    rows, columns = (torch.arange(k, dtype=torch.float64) for k in (n, m))
    turns = rows[:, None, None, None] * rows[:, None] / n + columns[:, None, None] * columns / m
    return (torch.cos(2 * torch.pi * turns) * x).sum((2, 3)) / (n * m)


def daubechies(order: int) -> torch.Tensor:
    """The low-pass filter of Daubechies' first (Haar's) or second wavelet."""
    root = 3**0.5
    taps = {1: [1.0, 1.0], 2: [(1 + root) / 4, (3 + root) / 4, (3 - root) / 4, (1 - root) / 4]}[order]
    return torch.tensor(taps, dtype=torch.float64) / 2**0.5


def idwt2(x: torch.Tensor, low: torch.Tensor) -> torch.Tensor:
    """The matrix of which x holds one level of wavelet coefficients: in its quarters, row by row, those of
    both smooth halves, of the detail over rows, over columns, and over both. Coefficient j of a half
    moves the filter by 2j; zeros around x, as many as the filter is long beyond 2, keep the size.
    """
    taps, beyond = len(low), len(low) - 2
    high = [h if k % 2 == 0 else -h for k, h in enumerate(low.tolist()[::-1])]
    size = [n + beyond + n % 2 for n in x.shape]
    start = [(beyond + n % 2) // 2 for n in x.shape]
    result = torch.zeros(*x.shape, dtype=torch.float64)
    for i, j in x.nonzero().tolist():
        (half, at), (other, beside) = (
            divmod(k + s, n // 2) for k, s, n in zip((i, j), start, size, strict=True)
        )
        for a in range(taps):
            for b in range(taps):
                row, column = 2 * at - beyond + a, 2 * beside - beyond + b
                if 0 <= row < x.shape[0] and 0 <= column < x.shape[1]:
                    over_rows, over_columns = high if other else low, high if half else low
                    result[row, column] += x[i, j] * over_rows[a] * over_columns[b]
    return result


def combined(
    parts: Any, weights: Any, kind: str, density: float = 1.0, sign: str = "total", rank: int = 0
) -> Any:
    """The delta of a combination of low-rank adapters, given (scaling, A, B) and a weight for each."""
    rule, of_deltas = kind.removesuffix("_svd"), kind.endswith("svd") or kind == "cat"
    deltas = [s * B @ A for s, A, B in parts]
    if of_deltas:
        whole = entrywise("linear" if rule in ("svd", "cat") else rule, deltas, weights, density, sign)
        if kind == "cat" or not rank:
            return whole
        U, S, V = torch.linalg.svd(whole, full_matrices=False)
        return (U[:, :rank] * S[:rank]) @ V[:rank]
    roots = [abs(w * s) ** 0.5 for w, (s, _, _) in zip(weights, parts, strict=True)]
    signed = [root if w * s >= 0 else -root for w, root, (s, _, _) in zip(weights, roots, parts, strict=True)]
    A = entrywise(rule, [A for _, A, _ in parts], signed, density, sign)
    return entrywise(rule, [B for _, _, B in parts], roots, density, sign) @ A


def entrywise(rule: str, tensors: Any, weights: Any, density: float, sign: str) -> Any:
    """One tensor for several: their weighted sum, or what trimming and an election of signs leave of it."""
    if rule in ("magnitude_prune", "ties"):  # keep the entries of the largest magnitude
        ranks = [t.abs().flatten().argsort(descending=True).argsort().view(t.shape) for t in tensors]
        tensors = [
            torch.where(r < int(density * t.numel()), t, 0.0) for t, r in zip(tensors, ranks, strict=True)
        ]
    terms = [w * t for w, t in zip(weights, tensors, strict=True)]
    if not rule.endswith("ties"):
        return sum(terms)
    votes = sum(t.sign() if sign == "frequency" else t for t in tensors)
    positive = votes >= 0
    agree = [torch.where(positive, t > 0, t < 0) for t in tensors]
    count = torch.stack(agree).sum(0).clamp(min=1)
    return sum(torch.where(a, t, 0.0) for a, t in zip(agree, terms, strict=True)) / count


def not_dropped(
    found: Any, tensors: Any, weights: Any, kind: str, density: float, sign: str, rtol: float, atol: float
) -> str:
    """How `found` is not what dropping entries of the tensors at random can leave; "" if it is."""
    near = {}
    for pattern in itertools.product((False, True), repeat=len(tensors)):
        left = [t / density if keep else 0.0 * t for t, keep in zip(tensors, pattern, strict=True)]
        outcome = entrywise("ties" if "ties" in kind else "linear", left, weights, 1.0, sign)
        near[pattern] = torch.isclose(found, outcome, rtol=rtol, atol=atol)
    if not torch.stack([*near.values()]).any(0).all():
        return "entries that no dropping leaves"
    for i in range(len(tensors)):
        kept, dropped = (
            torch.stack([near[k] for k in near if k[i] is keep]).any(0) for keep in (True, False)
        )
        if not (kept & ~dropped).any() or not (dropped & ~kept).any():
            return "of one adapter all entries are kept, or all dropped"
    return ""
