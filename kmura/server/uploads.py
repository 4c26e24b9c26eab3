"""Files and fields of a multipart request, parsed in memory; nothing is written to disk."""

import dataclasses
from pathlib import PurePath

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from kmura.server.tensor_json import RequestError

_FIELDS, _FIELD_BYTES, _HEADERS = 16, 1024, 16


@dataclasses.dataclass(frozen=True)
class Upload:
    """The content of a multipart request.

    Attributes:
        files: bytes of each file, in the order of the request.
        suffixes: of the names of the files, in lower case. The names themselves are not kept.
        fields: name -> text.
    """

    files: list[bytes]
    suffixes: list[str]
    fields: dict[str, str]


def upload(body: bytes, content_type: str, most_files: int) -> Upload:
    """Returns the content of a multipart request (RFC 7578).

    Args:
        body: bytes of the request.
        content_type: of the request.
        most_files: how many files it may have.

    Raises:
        RequestError: It is not a multipart request, it is damaged, or it has too many parts.
    """
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        raise RequestError("send the files of the study as multipart/form-data", 415)
    parts = _Parts(most_files)
    try:
        parser = MultipartParser(boundary, parts.callbacks, max_header_count=_HEADERS)
        parser.write(body)
        parser.finalize()
    except FormParserError as error:
        raise RequestError("the multipart request is damaged or cut off") from error
    if not parts.ended:
        raise RequestError("the multipart request is damaged or cut off")
    return Upload(parts.files, parts.suffixes, parts.fields)


class _Parts:
    """Collects the parts that the parser reports."""

    def __init__(self, most_files: int):
        self.files: list[bytes] = []
        self.suffixes: list[str] = []
        self.fields: dict[str, str] = {}
        self.ended = False
        self._most_files = most_files
        self._name, self._value, self._data = bytearray(), bytearray(), bytearray()
        self._headers: dict[str, bytes] = {}
        self.callbacks = {
            "on_part_begin": self._begin,
            "on_header_field": lambda data, start, end: self._name.extend(data[start:end]),
            "on_header_value": lambda data, start, end: self._value.extend(data[start:end]),
            "on_header_end": self._header,
            "on_part_data": lambda data, start, end: self._data.extend(memoryview(data)[start:end]),
            "on_part_end": self._part,
            "on_end": self._end,
        }

    def _begin(self) -> None:
        self._headers, self._data = {}, bytearray()

    def _header(self) -> None:
        self._headers[self._name.decode("latin-1").lower()] = bytes(self._value)
        self._name, self._value = bytearray(), bytearray()

    def _part(self) -> None:
        kind, options = parse_options_header(self._headers.get("content-disposition", b""))
        if kind != b"form-data":
            raise RequestError("a part of the multipart request has no content-disposition form-data")
        if b"filename" in options or b"filename*" in options:
            if len(self.files) == self._most_files:
                raise RequestError(f"the request has more than {self._most_files} files", 413)
            self.files.append(bytes(self._data))
            name = options.get(b"filename", b"").decode("utf-8", "replace")
            self.suffixes.append(PurePath(name.replace("\\", "/")).suffix.lower()[:8])
            return
        if len(self.fields) == _FIELDS or len(self._data) > _FIELD_BYTES:
            raise RequestError(f"more than {_FIELDS} fields, or a field of more than {_FIELD_BYTES} bytes", 413)
        name = options.get(b"name", b"").decode("utf-8", "replace")
        self.fields[name] = self._data.decode("utf-8", "replace").strip()

    def _end(self) -> None:
        self.ended = True
