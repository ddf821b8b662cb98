"""A file as bytes: opened, digested and read any number of times.

Stdin is first copied to a temporary file.

Text is checked here block by block: an unpacked size above the limit, a line that is too long, a
NUL byte or a byte that is not UTF-8 is an `InputError` with line and column.
"""

from __future__ import annotations

import codecs
import gzip
import hashlib
import io
import os
import stat
import tempfile
import zlib
from contextlib import ExitStack
from pathlib import Path
from typing import IO, TYPE_CHECKING, Final, Self

from worker.errors import InputError

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

    from typing_extensions import Buffer

    from worker.importer.options import Format, ImportOptions

_BLOCK: Final = 128 * 1024
_HEAD: Final = 64 * 1024
_GZIP: Final = b"\x1f\x8b"
_ZIP: Final = b"PK\x03\x04"
_SUFFIXES: Final[dict[str, Format]] = {
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "csv",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".xlsx": "xlsx",
}
# Files that are often imported by mistake, by their first bytes.
_BINARY: Final = {
    b"\xd0\xcf\x11\xe0": "an old Excel workbook (or one with a password): save it as .xlsx or CSV",
    b"%PDF-": "a PDF",
    b"\x89PNG": "a picture",
    b"PAR1": "a Parquet file",
    b"\x28\xb5\x2f\xfd": "compressed with zstd: unpack it, or use gzip",
    b"BZh91AY&SY": "compressed with bzip2: unpack it, or use gzip",
    b"\xfd7zXZ": "compressed with xz: unpack it, or use gzip",
    b"\xff\xfe": "UTF-16 text: save it as UTF-8 (CSV UTF-8)",
    b"\xfe\xff": "UTF-16 text: save it as UTF-8 (CSV UTF-8)",
    _GZIP: "compressed with gzip twice: unpack it once",
}
EMPTY: Final = "the file is empty: export it again, or name another file"
_LONGEST_MARK: Final = 20
_PAGE: Final = "a web page: save it as .xlsx or CSV, or download the file again"
# The same for text, in small letters.
_MARKUP: Final = {
    b"<!doctype html": _PAGE,
    b"<html": _PAGE,
    b"<table": _PAGE,
    b"<?xml": "XML: save it as .xlsx or CSV",
}


class Source:
    """One file to import: its name, the SHA-256 of its original bytes, and its format.

    Its bytes can be read any number of times. Close it, or use it in `with`. Once the file changes,
    nothing more is read from it.
    """

    def __init__(
        self,
        *,
        name: str,
        file: IO[bytes],
        options: ImportOptions,
        digest: str | None = None,
        check: Callable[[Source], None] | None = None,
    ) -> None:
        self.name = name
        self.options = options
        self.hidden_rows = 0
        """The hidden rows of a workbook's sheet, such as rows behind a filter.

        Counted when it is read.
        """
        self._file = file
        try:
            self._stamp = self._state()
            # A receiver of the file has its digest already.
            self.digest = digest or hashlib.file_digest(self._from_start(), "sha256").hexdigest()
            if check is not None:
                check(self)
            self.size = self._stamp[0]
            self.packed = self._from_start().read(len(_GZIP)) == _GZIP
            self.head = self._first_bytes()
            self.format = self._found_format()
        except BaseException:
            file.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        tb: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Closes the file, and removes a temporary copy."""
        self._file.close()

    def problem(
        self, sentence: str, *, line: int | None = None, column: int | str | None = None
    ) -> InputError:
        """Return an error that names the file, the line and the column."""
        where = [
            self.name,
            *([f"line {line}"] if line else []),
            *([f"column {column}"] if column else []),
        ]
        return InputError(f"{', '.join(where)}: {sentence}")

    def raw(self) -> io.BufferedIOBase:
        """Return a reader of the unpacked bytes from the start.

        Readers are independent of each other.
        """
        self.check_unchanged()
        raw = self._from_start()
        return gzip.GzipFile(fileobj=raw, mode="rb") if self.packed else raw

    def text(self) -> io.TextIOWrapper:
        """Return a reader of the text from the start that keeps line ends.

        It raises `InputError` for invalid text.
        """
        checked = io.BufferedReader(_CheckedText(self, self.raw()), _BLOCK)
        return io.TextIOWrapper(checked, encoding="utf-8-sig", newline="")

    def workbook(self) -> IO[bytes]:
        """Return a seekable copy of the unpacked bytes; close it."""
        inner = self.raw()
        return _copied(
            lambda: read_block(self, inner, _BLOCK), self.options.max_unpacked_bytes, self.too_large
        )

    def too_large(self) -> InputError:
        """Return the error for contents above the limit."""
        return self.problem(
            f"unpacks to more than {self.options.max_unpacked_bytes:,} bytes: split it"
        )

    def check_unchanged(self) -> None:
        """Raises `InputError` if the file has changed since it was opened."""
        if self._state() != self._stamp:
            raise self.problem("was changed while it was being read: run the command again")

    def _state(self) -> tuple[int, int]:
        found = os.fstat(self._file.fileno())
        return found.st_size, found.st_mtime_ns

    def _from_start(self) -> io.BufferedReader:
        return io.BufferedReader(_Positioned(self._file.fileno(), self), _BLOCK)

    def _first_bytes(self) -> bytes:
        head = read_block(self, self.raw(), _HEAD)
        if len(head) < _HEAD and not head.removeprefix(codecs.BOM_UTF8).strip():
            raise self.problem(EMPTY)
        return head

    def _found_format(self) -> Format:
        text = self.head.removeprefix(codecs.BOM_UTF8).lstrip()[:_LONGEST_MARK].lower()
        for start, known in ((self.head, _BINARY), (text, _MARKUP)):
            for magic, what in known.items():
                if start.startswith(magic):
                    raise self.problem(f"cannot be read: it is {what}")
        if self.head.startswith(_ZIP):
            if self.options.format not in {None, "xlsx"}:
                raise self.problem(
                    f"is a workbook or another zip file, not {self.options.format}: leave out"
                    " --format"
                )
            return "xlsx"
        stated = self.options.format
        if stated is not None:
            found = stated
        else:
            name = self.name.lower().removesuffix(".gz")
            found = _SUFFIXES.get(Path(name).suffix) or self._guessed()
        if found == "xlsx":
            raise self.problem(
                "is not an XLSX workbook: its first bytes are not those of one; save it as .xlsx or"
                " CSV"
            )
        return found

    def _guessed(self) -> Format:
        start = self.head.removeprefix(codecs.BOM_UTF8).lstrip()[:1]
        if start == b"[":
            raise self.problem("is a JSON array: write one JSON object per line", line=1)
        return "jsonl" if start == b"{" else "csv"


def open_source(
    path: str | Path,
    options: ImportOptions,
    stdin: IO[bytes] | None = None,
    *,
    check: Callable[[Source], None] | None = None,
) -> Source:
    """Return a source for a path; `-` is `stdin`, which is first copied to a temporary file.

    `check` sees its name and digest, and may raise, before its contents are looked at.
    """
    if str(path) == "-":
        if stdin is None:
            raise InputError("there is no standard input to read: name a file")
        return Source(
            name="stdin",
            file=_spooled("standard input", stdin, options),
            options=options,
            check=check,
        )
    if not str(path):
        raise InputError("the file's name is empty: name a file, or - for standard input")
    path = Path(path)
    # A file name may have bytes that are not text; they are shown and stored escaped.
    name = path.name.encode("utf-8", "backslashreplace").decode("utf-8")
    try:
        file = path.open("rb")
    except FileNotFoundError:
        raise InputError(f"the file {path} does not exist: check its name") from None
    except IsADirectoryError:
        raise InputError(f"{path} is a folder: name a file in it") from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise InputError(
            f"{path} cannot be opened ({reason}): check its name, and that you may read it"
        ) from error
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        # A pipe, such as <(…) in a shell, can be read only once.
        with file:
            spooled = _spooled(name, file, options)
            return Source(name=name, file=spooled, options=options, check=check)
    return Source(name=name, file=file, options=options, check=check)


def read_block(source: Source, stream: IO[bytes] | io.BufferedIOBase, size: int) -> bytes:
    """Return up to `size` bytes; raises `InputError` if the compressed data is broken."""
    try:
        return stream.read(size)
    except EOFError:
        raise source.problem(
            "ends in the middle of the compressed data, so it was cut off: copy it again"
        ) from None
    except (gzip.BadGzipFile, zlib.error) as error:
        raise source.problem(f"cannot be unpacked: {error}") from None


def _spooled(name: str, stream: IO[bytes], options: ImportOptions) -> IO[bytes]:
    limit = options.max_unpacked_bytes
    too_large = InputError(
        f"{name} has more than {limit:,} bytes: split it, and import the parts as files"
    )

    def read() -> bytes:
        try:
            return stream.read(_BLOCK)
        except OSError as error:
            raise InputError(f"{name} {_unreadable(error)}") from None

    return _copied(read, limit, lambda: too_large)


def _unreadable(error: OSError) -> str:
    return f"cannot be read ({error.strerror}): name another file, or copy this one again"


def _copied(
    read: Callable[[], bytes], limit: int, too_large: Callable[[], InputError]
) -> IO[bytes]:
    with ExitStack() as stack:
        target: IO[bytes] = stack.enter_context(tempfile.TemporaryFile())
        while block := read():
            target.write(block)
            if target.tell() > limit:
                raise too_large()
        target.flush()
        target.seek(0)
        stack.pop_all()
        return target


class _Positioned(io.RawIOBase):
    """A reader of a source's file with a position of its own."""

    def __init__(self, descriptor: int, source: Source) -> None:
        super().__init__()
        self._descriptor = descriptor
        self._source = source
        self._position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self._position}.get(whence)
        self._position = (os.fstat(self._descriptor).st_size if start is None else start) + offset
        return self._position

    def readinto(self, buffer: Buffer) -> int:
        view = memoryview(buffer)
        try:
            block = os.pread(self._descriptor, len(view), self._position)
        except OSError as error:
            raise self._source.problem(_unreadable(error)) from None
        # What was written meanwhile was neither checked nor compared with the records.
        self._source.check_unchanged()
        view[: len(block)] = block
        self._position += len(block)
        return len(block)


class _CheckedText(io.RawIOBase):
    """The bytes for a text reader; each block is checked first."""

    def __init__(self, source: Source, inner: io.BufferedIOBase) -> None:
        super().__init__()
        self._source = source
        self._inner = inner
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        self._total = 0
        self._line = 1
        self._open_line = 0
        """Bytes of the current line before the current block."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Buffer) -> int:
        view = memoryview(buffer)
        block = read_block(self._source, self._inner, len(view))
        self._check(block)
        view[: len(block)] = block
        return len(block)

    def _check(self, block: bytes) -> None:
        options = self._source.options
        self._total += len(block)
        if self._source.packed and self._total > options.max_unpacked_bytes:
            raise self._source.too_large()
        if (at := block.find(b"\0")) >= 0:
            raise self._at(block, at, "a NUL byte: this is not a text file, or it is damaged")
        try:
            self._decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            # The decoder may have kept the start of a character from the block before.
            at = error.start - (len(error.object) - len(block))
            wrong = error.object[error.start]
            raise self._at(
                block,
                at,
                f"byte 0x{wrong:02X} is not UTF-8: save the whole file as UTF-8 (CSV UTF-8)",
            ) from None
        self._line += block.count(b"\n")
        first = block.find(b"\n")
        if first < 0:
            first = block.find(b"\r")
        if self._open_line + (first if first >= 0 else len(block)) > options.max_row_bytes:
            raise self._source.problem(
                f"the line is longer than {options.max_row_bytes:,} bytes", line=self._line
            )
        last = max(block.rfind(b"\n"), block.rfind(b"\r") if first >= 0 else -1)
        self._open_line = len(block) - last - 1 if last >= 0 else self._open_line + len(block)

    def _at(self, block: bytes, at: int, sentence: str) -> InputError:
        before = block[: max(at, 0)]
        line = self._line + before.count(b"\n")
        start = before.rfind(b"\n")
        column = at - start if start >= 0 else self._open_line + at + 1
        return self._source.problem(sentence, line=line, column=column)
