"""Faults that the files of an adapter can have: what `edit_file` does by the name of a `damage`.

Each function takes the path of a file and puts the fault there. They stand alone, for scripts carry their
source with them; the words of the language are the functions' names, after `fault_`, with dashes.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any


def rewrite_header(path: Any, change: Any) -> None:
    """Let `change(header)` stand as the header of a safetensors file, as JSON unless it is text."""
    content = path.read_bytes()
    end = 8 + int.from_bytes(content[:8], "little")
    header = change(json.loads(content[8:end]))
    text = (header if isinstance(header, str) else json.dumps(header)).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content[end:])


def with_tensor(header: Any, place: int, **entries: Any) -> Any:
    """A safetensors header in which the tensor at a place (in key order) has other entries."""
    key = sorted(key for key in header if key != "__metadata__")[place]
    return {**header, key: {**header[key], **entries}}


def fault_header_too_long(path: Any) -> None:
    """The header claims to be four exabytes long."""
    path.write_bytes((2**62).to_bytes(8, "little") + path.read_bytes()[8:])


def fault_header_longer_than_file(path: Any) -> None:
    """The header claims to be as long as the whole file."""
    content = path.read_bytes()
    path.write_bytes(len(content).to_bytes(8, "little") + content[8:])


def fault_header_no_json(path: Any) -> None:
    """The header is text that is no JSON."""
    rewrite_header(path, lambda header: "no JSON")


def fault_header_a_list(path: Any) -> None:
    """The header is a JSON list."""
    rewrite_header(path, lambda header: [header])


def fault_dtype_unknown(path: Any) -> None:
    """A tensor has a dtype that does not exist."""
    rewrite_header(path, lambda header: with_tensor(header, 0, dtype="F1000"))


def fault_dtype_of_other_size(path: Any) -> None:
    """A tensor claims a wider dtype than its bytes allow."""
    rewrite_header(path, lambda header: with_tensor(header, 0, dtype="F64"))


def fault_shape_of_other_size(path: Any) -> None:
    """A tensor claims more elements than its bytes allow."""
    rewrite_header(path, lambda header: with_tensor(header, 0, shape=[999, 999]))


def fault_shape_negative(path: Any) -> None:
    """A tensor claims negative sizes."""
    rewrite_header(path, lambda header: with_tensor(header, 0, shape=[-4, -8]))


def fault_shape_beyond_counting(path: Any) -> None:
    """A tensor claims more bytes than 64 bits can count."""
    rewrite_header(path, lambda header: with_tensor(header, 0, shape=[2**40, 2**40]))


def fault_offsets_overlapping(path: Any) -> None:
    """The second tensor begins where the first does."""

    def change(header: Any) -> Any:
        keys = sorted((k for k in header if k != "__metadata__"), key=lambda k: header[k]["data_offsets"])
        size = header[keys[1]]["data_offsets"][1] - header[keys[1]]["data_offsets"][0]
        return {**header, keys[1]: {**header[keys[1]], "data_offsets": [0, size]}}

    rewrite_header(path, change)


def fault_offsets_beyond_end(path: Any) -> None:
    """A tensor claims bytes behind the end of the file."""
    rewrite_header(path, lambda header: with_tensor(header, -1, data_offsets=[0, 10**9]))


def fault_offsets_backwards(path: Any) -> None:
    """A tensor ends before it begins."""
    rewrite_header(path, lambda header: with_tensor(header, 0, data_offsets=[128, 0]))


def fault_cut_short(path: Any) -> None:
    """The last third of the file is missing."""
    content = path.read_bytes()
    path.write_bytes(content[: len(content) - len(content) // 3])


def fault_with_more_behind(path: Any) -> None:
    """Bytes that belong to nothing follow the end."""
    path.write_bytes(path.read_bytes() + b"}and more behind the end")


def fault_empty(path: Any) -> None:
    """There is not a byte in the file."""
    path.write_bytes(b"")


def fault_text(path: Any) -> None:
    """The file is a line of text."""
    path.write_bytes(b"hello, this is something else\n")


def fault_folder(path: Any) -> None:
    """There is a folder of the name of the file."""
    path.unlink()
    path.mkdir()


def fault_link_to_itself(path: Any) -> None:
    """The file is a link that leads to itself."""
    path.unlink()
    os.symlink(path.name, path)


def fault_pickle_with_code(path: Any) -> None:
    """Whoever loads this pickle without care writes a file called `executed`."""
    import pickle

    class Code:
        def __reduce__(self) -> Any:
            return open, (str(path.parent / "executed"), "w")

    path.write_bytes(pickle.dumps({"weights": Code()}))


def fault_saved_with_code(path: Any) -> None:
    """As a pickle with code, in the format of `torch.save`."""
    import torch

    class Code:
        def __reduce__(self) -> Any:
            return open, (str(path.parent / "executed"), "w")

    torch.save({"weights": Code()}, path)


def fault_saved_list(path: Any) -> None:
    """What was saved is a list."""
    import torch

    torch.save([torch.zeros(2, 2)], path)


def fault_saved_texts(path: Any) -> None:
    """What was saved has texts in the place of tensors."""
    import torch

    torch.save(dict.fromkeys(torch.load(path, weights_only=True), "no tensor"), path)


def fault_saved_numbered(path: Any) -> None:
    """What was saved has numbers in the place of keys."""
    import torch

    torch.save(dict(enumerate(torch.load(path, weights_only=True).values())), path)


def fault_json_list(path: Any) -> None:
    """The fields stand inside a list."""
    path.write_text(json.dumps([json.loads(path.read_text())]))


def fault_json_null(path: Any) -> None:
    """The file says null."""
    path.write_text("null")


def fault_json_deeply_nested(path: Any) -> None:
    """A field is a hundred thousand lists inside each other."""
    path.write_text('{"peft_type": "LORA", "auto_mapping": ' + "[" * 100_000 + "]" * 100_000 + "}")


def fault_json_endless_number(path: Any) -> None:
    """The rank has five thousand digits."""
    path.write_text(
        json.dumps({**json.loads(path.read_text()), "r": 0}).replace('"r": 0', '"r": ' + "9" * 5000)
    )


def fault_json_repeated_name(path: Any) -> None:
    """The rank is given twice, first as one that nobody would accept."""
    path.write_text('{"r": 1000000, ' + path.read_text().lstrip("{\n "))


def fault_json_not_a_number(path: Any) -> None:
    """Alpha is NaN, which JSON does not have."""
    path.write_text(json.dumps({**json.loads(path.read_text()), "lora_alpha": float("nan")}))


def fault_utf_16(path: Any) -> None:
    """The text is in UTF-16."""
    path.write_bytes(path.read_text().encode("utf-16"))


def fault_byte_order_mark(path: Any) -> None:
    """The text begins with a byte order mark, which JSON does not allow."""
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())


def fault_latin_1(path: Any) -> None:
    """The text is in Latin-1, with a letter that is no UTF-8."""
    fields = {**json.loads(path.read_text()), "base_model_name_or_path": "caf\xe9"}
    path.write_bytes(json.dumps(fields, ensure_ascii=False).encode("latin-1"))


DAMAGES: dict[str, Callable[[Any], None]] = {
    name.removeprefix("fault_").replace("_", "-"): function
    for name, function in list(globals().items())
    if name.startswith("fault_")
}
