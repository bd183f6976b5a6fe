"""Multipart forms as OpenAI's client sends them: lists as ``name[]``, objects as ``name[key]``, a file on disk."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeVar

from pydantic import BaseModel
from starlette.datastructures import UploadFile
from starlette.requests import Request

from phi4mm.serve.errors import ApiError, bad_request

_Body = TypeVar("_Body", bound=BaseModel)
_MOST_FIELDS = 1000
_MOST_FIELD_BYTES = 2 << 20  # recordings of known speakers are fields
_NAME = re.compile(r"([A-Za-z_]\w{0,63})(?:\[(\w{0,64})\])?")


@dataclass(frozen=True)
class Form:
    """A form that was received.

    Attributes:
        file: the upload, at its start; from a megabyte on it is on disk. Whoever receives the form closes it.
        fields: texts, lists of them where the name ends in ``[]``, and mappings where it ends in ``[key]``.
    """

    file: BinaryIO
    fields: dict[str, Any]

    def checked(self, kind: type[_Body]) -> _Body:
        """The fields as a body.

        Raises:
            ValidationError: they are not what it has.
        """
        lists = {name for name, field in kind.model_fields.items() if str(field.annotation).startswith("list[")}
        # Some clients send a list of one as a plain field.
        fields = {
            name: [value] if name in lists and isinstance(value, str) else value for name, value in self.fields.items()
        }
        return kind.model_validate(fields)


async def read_form(request: Request) -> Form:
    """Receive a form with one file, the field ``file``.

    Raises:
        ApiError: it is no form, has no file or several, or a field is given twice or is too large.
    """
    content_type = request.headers.get("content-type", "")
    if content_type.partition(";")[0].strip().lower() != "multipart/form-data":
        raise ApiError(415, "the body's type is not a form; send it with Content-Type: multipart/form-data")
    received = await request.form(max_files=1, max_fields=_MOST_FIELDS, max_part_size=_MOST_FIELD_BYTES)
    try:
        return _form(received.multi_items())
    except BaseException:
        await received.close()
        raise


def _form(items: list[tuple[str, UploadFile | str]]) -> Form:
    file: BinaryIO | None = None
    fields: dict[str, Any] = {}
    for name, value in items:
        if isinstance(value, UploadFile):
            if name != "file":
                raise bad_request(f"{name[:64]}: is a file; expected a text", name[:64])
            file = value.file
            continue
        match = _NAME.fullmatch(name)
        if match is None:
            continue  # no field of any endpoint
        _add(fields, match[1], match[2], value)
    if file is None:
        raise bad_request("file: is missing; send an audio file as the form's field file", "file")
    return Form(file, fields)


def _add(fields: dict[str, Any], name: str, key: str | None, value: str) -> None:
    kinds = {None: str, "": list}
    before = fields.get(name)
    if before is not None and (key is None or not isinstance(before, kinds.get(key, dict))):
        raise bad_request(f"{name}: is given several times; expected once, or as {name}[]", name)
    if key is None:
        fields[name] = value
    elif key == "":
        fields.setdefault(name, []).append(value)
    else:
        fields.setdefault(name, {})[key] = value
