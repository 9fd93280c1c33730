"""Where records come from: files and folders, and the Hugging Face hub.

A source reads raw rows, recognises their format (or follows a column mapping) and validates every
record. What a whole data set is made of is named by its fingerprint, so that a second start finds
what the first one made of it.
"""

from __future__ import annotations

import logging
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any, Literal, Protocol

import datasets
import pyarrow as pa
from datasets.exceptions import DatasetsError
from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError

from alignment.data.columns import ColumnMapping
from alignment.data.features import RECORD_FEATURES
from alignment.data.readers import RawRow, list_files, read_rows
from alignment.data.records import RECORD_TYPES, Record, RecordError, RecordKind, UnfitError, to_row
from alignment.data.schema import Row, Schema, show_fields
from alignment.data.schemas import SCHEMAS, describe_schemas, recognise
from alignment.data.store import content_hash
from alignment.utils.errors import ConfigError, DataError
from alignment.utils.files import hash_file

logger = logging.getLogger(__name__)

OnBadRow = Literal["error", "drop"]

PARSE_VERSION = 3
"""Part of every fingerprint: raise it when the same file would give other records."""

_COMMIT = re.compile(r"[0-9a-f]{40}")
_WINDOW = 100  # rows looked at to recognise the format
_CHUNK = 1000  # rows turned into Arrow at a time
_EXAMPLES = 5  # places named for each reason of dropping


class Source(Protocol):
    """Anything that gives records of one kind, named by its content and everything that shaped it."""

    @property
    def kind(self) -> RecordKind:
        """What the records offer."""
        ...

    @property
    def fingerprint(self) -> str:
        """Names the content."""
        ...

    def load(self) -> datasets.Dataset:
        """All records, with the columns of their kind (``RECORD_FEATURES``)."""
        ...


@dataclass
class SourceReport:
    """What became of a source's rows.

    Attributes:
        rows: Rows read.
        records: Records made of them.
        dropped: Rows that could not be used, by reason.
        examples: Where the first few of each reason stand.
    """

    rows: int = 0
    records: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def drop(self, row: RawRow, error: RecordError) -> None:
        """Counts one bad row."""
        self.dropped[error.reason] += 1
        places = self.examples.setdefault(error.reason, [])
        if len(places) < _EXAMPLES:
            places.append(row.where)

    def __str__(self) -> str:
        reasons = "; ".join(
            f"{count} x {reason} (first at {self.examples[reason][0]})" for reason, count in self.dropped.most_common()
        )
        return f"{self.records} records from {self.rows} rows, {self.dropped.total()} dropped: {reasons or 'none'}"


class RowSource(ABC):
    """A source whose records are parsed from raw rows.

    Args:
        columns: For a format that is not recognised: our name -> the column's name, for example
            ``{prompt: question, chosen: good_answer, rejected: bad_answer}``.
        label_values: What the values of ``label`` mean, for example ``{positive: true, negative: false,
            neutral: null}``; rows whose value means ``null`` are left out and counted.
        as_chat: Turn a prompt that is plain text into one user message, for chat models.
        on_bad_row: ``error`` stops at the first bad row, ``drop`` counts them and says so.
    """

    def __init__(
        self,
        *,
        columns: Mapping[str, str] | None,
        label_values: Mapping[Any, bool | None] | None,
        as_chat: bool,
        on_bad_row: OnBadRow,
    ) -> None:
        if on_bad_row not in ("error", "drop"):
            raise ConfigError("data.on_bad_row", got=on_bad_row, expected="error or drop")
        self.mapping = ColumnMapping(columns, label_values)
        self.as_chat = as_chat
        self.on_bad_row = on_bad_row

    @property
    @abstractmethod
    def name(self) -> str:
        """How messages call the source."""

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Names the content and everything that shapes it."""

    @abstractmethod
    def rows(self) -> Iterator[RawRow]:
        """The raw rows, in order."""

    @property
    def kind(self) -> RecordKind:
        """What the records offer, from the first rows."""
        return self._schema.kind

    @cached_property
    def _schema(self) -> Schema:
        problems: list[tuple[str, str]] = []
        found: list[Schema] = []
        for row in islice(self.rows(), _WINDOW):
            try:
                value = self._mapped(row)
            except RecordError as error:
                problems.append((row.where, str(error)))
                continue
            schema = recognise(value)
            found += [schema] if schema else []
            problems.append((row.where, f"the row has {show_fields(value)}"))
        if found:
            return min(found, key=SCHEMAS.index)
        if not problems:
            raise DataError(self.name, "holds no rows")
        where, problem = problems[0]
        raise DataError(
            where,
            f"the format is not known: {problem}. Known formats: {describe_schemas()}. Name the columns "
            "with data.train.columns, for example 'data.train.columns={prompt: question, chosen: good, rejected: bad}'",
        )

    def load(self) -> datasets.Dataset:
        """Parses every row."""
        return self.read()[0]

    def read(self) -> tuple[datasets.Dataset, SourceReport]:
        """Parses every row; also says what was dropped.

        Raises:
            DataError: A row is bad and ``on_bad_row`` is ``error``, or no record is left.
        """
        report, kind = SourceReport(), self.kind
        schema = RECORD_FEATURES[kind].arrow_schema
        records = (to_row(record) for record in self._records(report))
        chunks = iter(lambda: list(islice(records, _CHUNK)), [])
        tables = [pa.Table.from_pylist(chunk, schema=schema) for chunk in chunks]
        if not tables:
            raise DataError(self.name, f"no usable row: {report}")
        if report.dropped:
            logger.warning("%s: %s", self.name, report)
        return datasets.Dataset(pa.concat_tables(tables), fingerprint=self.fingerprint), report

    def _records(self, report: SourceReport) -> Iterator[Record]:
        seen: set[str] = set()
        record_type = RECORD_TYPES[self.kind]
        for row in self.rows():
            report.rows += 1
            try:
                made = [record_type(id=name, **fields) for name, fields in self._parse(row, seen)]
            except RecordError as error:
                if self.on_bad_row == "error" and not isinstance(error, UnfitError):
                    hint = "put the row right, or set data.on_bad_row=drop to count and skip such rows"
                    raise DataError(row.where, f"{error}. Next: {hint}") from error
                report.drop(row, error)
                continue
            report.records += len(made)
            yield from made

    def _parse(self, row: RawRow, seen: set[str]) -> Iterable[tuple[str, dict[str, Any]]]:
        value = self._mapped(row)
        parsed = self._schema.parse(value)
        name = _row_id(row, value, seen)
        for number, fields in enumerate(parsed):
            if self.as_chat and isinstance(fields["prompt"], str):
                fields["prompt"] = [{"role": "user", "content": fields["prompt"]}]
            yield (name if len(parsed) == 1 else f"{name}#{number}"), fields

    def _mapped(self, row: RawRow) -> Row:
        if isinstance(row.value, RecordError):
            raise row.value
        return self.mapping(row.value)

    def _settings(self) -> dict[str, Any]:
        return {
            "parse_version": PARSE_VERSION,
            "columns": self.mapping.columns,
            "label_values": self.mapping.label_values,
            "as_chat": self.as_chat,
            "on_bad_row": self.on_bad_row,
        }


class FileSource(RowSource):
    """Records from a file, or from every data file of a folder in the order of their names.

    Args:
        path: A ``.jsonl``, ``.json`` (either also ``.gz``) or ``.parquet`` file, or a folder of them.
        columns: See :class:`RowSource`.
        label_values: See :class:`RowSource`.
        as_chat: See :class:`RowSource`.
        on_bad_row: See :class:`RowSource`.
    """

    def __init__(
        self,
        *,
        path: str,
        columns: Mapping[str, str] | None = None,
        label_values: Mapping[Any, bool | None] | None = None,
        as_chat: bool = False,
        on_bad_row: OnBadRow = "error",
    ) -> None:
        super().__init__(columns=columns, label_values=label_values, as_chat=as_chat, on_bad_row=on_bad_row)
        self.path = Path(path).expanduser()

    @property
    def name(self) -> str:
        """The path."""
        return str(self.path)

    @cached_property
    def fingerprint(self) -> str:
        """A hash of every file's name and bytes, and of the settings: a moved file stays the same."""
        files = {str(file.relative_to(self.path.parent)): hash_file(file) for file in list_files(self.path)}
        return content_hash(source="file", files=files, **self._settings())

    def rows(self) -> Iterator[RawRow]:
        """The rows of all files."""
        return chain.from_iterable(read_rows(file) for file in list_files(self.path))


class HubSource(RowSource):
    """Records from a data set on the Hugging Face hub.

    Args:
        path: The repository, for example ``Anthropic/hh-rlhf``.
        name: A configuration of it, or ``None``.
        data_dir: A folder of it, or ``None``.
        split: For example ``train``.
        revision: A commit, tag or branch. A branch is resolved to its commit of now, which then is
            part of the fingerprint; give the commit for a run that can be repeated.
        columns: See :class:`RowSource`.
        label_values: See :class:`RowSource`.
        as_chat: See :class:`RowSource`.
        on_bad_row: See :class:`RowSource`.
    """

    def __init__(
        self,
        *,
        path: str,
        split: str,
        name: str | None = None,
        data_dir: str | None = None,
        revision: str | None = None,
        columns: Mapping[str, str] | None = None,
        label_values: Mapping[Any, bool | None] | None = None,
        as_chat: bool = False,
        on_bad_row: OnBadRow = "error",
    ) -> None:
        super().__init__(columns=columns, label_values=label_values, as_chat=as_chat, on_bad_row=on_bad_row)
        self.path, self.split, self.config, self.data_dir, self.revision = path, split, name, data_dir, revision

    @property
    def name(self) -> str:
        """The repository and split."""
        return f"{self.path} ({self.split})"

    @cached_property
    def commit(self) -> str:
        """The commit that ``revision`` means now; asks the hub unless it is a commit already."""
        if self.revision is not None and _COMMIT.fullmatch(self.revision):
            return self.revision
        try:
            return str(HfApi().dataset_info(self.path, revision=self.revision).sha)
        except (HfHubHTTPError, OSError) as error:
            raise DataError(
                self.name,
                f"the hub does not answer for revision {self.revision!r} ({type(error).__name__}: {error}). Check the "
                "name and the network, set data.train.hub.revision to a commit that is in the local cache, or give "
                "a local copy with data.train.path",
            ) from error

    @cached_property
    def fingerprint(self) -> str:
        """The repository at its commit, the split and the settings."""
        place = {"path": self.path, "config": self.config, "data_dir": self.data_dir, "split": self.split}
        return content_hash(source="hub", place=place, commit=self.commit, **self._settings())

    def rows(self) -> Iterator[RawRow]:
        """The split's rows."""
        for number, row in enumerate(self._dataset, start=1):
            yield RawRow(f"{self.path}/{self.split}", number, f"{self.name}: row {number}", dict(row))

    @cached_property
    def _dataset(self) -> datasets.Dataset:
        try:
            return datasets.load_dataset(
                self.path, self.config, data_dir=self.data_dir, split=self.split, revision=self.commit
            )
        except (OSError, ValueError, DatasetsError) as error:
            hint = "check data.train.hub, or give a local copy with data.train.path"
            raise DataError(self.name, f"cannot be loaded from the hub ({error}): {hint}") from error


def file_or_hub(
    *,
    path: str | None,
    hub: HubSource,
    columns: Mapping[str, str] | None = None,
    label_values: Mapping[Any, bool | None] | None = None,
    as_chat: bool = False,
    on_bad_row: OnBadRow = "error",
) -> RowSource:
    """A local copy where ``path`` says there is one, else the data set on the hub.

    Args:
        path: A file or folder, or ``None``.
        hub: The data set on the hub; its own settings are replaced by those given here.
        columns: See :class:`RowSource`.
        label_values: See :class:`RowSource`.
        as_chat: See :class:`RowSource`.
        on_bad_row: See :class:`RowSource`.
    """
    if path is not None:
        return FileSource(path=path, columns=columns, label_values=label_values, as_chat=as_chat, on_bad_row=on_bad_row)
    return HubSource(
        path=hub.path,
        split=hub.split,
        name=hub.config,
        data_dir=hub.data_dir,
        revision=hub.revision,
        columns=columns,
        label_values=label_values,
        as_chat=as_chat,
        on_bad_row=on_bad_row,
    )


def _row_id(row: RawRow, value: Row, seen: set[str]) -> str:
    """The row's own id, or file and line; a second row of the same id is told apart by its line."""
    given = value.get("id")
    name = str(given) if isinstance(given, str | int) and given != "" else f"{row.file}:{row.line}"
    if name in seen:
        name = f"{name}@{row.file}:{row.line}"
    seen.add(name)
    return name
