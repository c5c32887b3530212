"""Pages of an RNTuple: which ones hold the elements of a column, and what their bytes mean."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import uproot
import xxhash
from uproot.models.RNTuple import PageLink
from uproot.source.chunk import Chunk
from uproot.source.cursor import Cursor

from mlaas_ray.streaming.ranges import Range

# Behind a list of pages, and a page that has one: XXH3, 64 bits, little-endian.
CHECKSUM_BYTES = 8


@dataclass(frozen=True, slots=True)
class Page:
    """Some elements of a column, one after the other.

    Attributes:
        column: Index of the column they are stored in.
        first: Index of the first, among the column's elements of its cluster.
        elements: How many.
        start: First byte in the file.
        bytes: Compressed size, without the checksum.
        checksum: Whether one follows.
    """

    column: int
    first: int
    elements: int
    start: int
    bytes: int
    checksum: bool

    @property
    def range(self) -> Range:
        """Its bytes in the file, the checksum among them."""
        return self.start, self.start + self.bytes + CHECKSUM_BYTES * self.checksum


class ColumnStore:
    """Where the columns of an RNTuple are, cluster by cluster.

    Args:
        ntuple: uproot's RNTuple.

    Attributes:
        clusters: First entry, and entries, of each cluster.

    Raises:
        ValueError: When a checksum says that the lists of pages are not what was written.
    """

    def __init__(self, ntuple: Any) -> None:
        self._ntuple = ntuple
        self.clusters: list[tuple[int, int]] = []
        self._links: list[Any] = []
        for envelope in _page_lists(ntuple):
            self.clusters += [
                (int(c.num_first_entry), int(c.num_entries)) for c in envelope.cluster_summaries
            ]
            self._links += envelope.pagelinklist
        self._alternatives: dict[int, list[int]] = {}
        for column in ntuple.column_records:
            self._alternatives.setdefault(column.field_id, []).append(column.idx)

    def pages(self, cluster: int, column: int, due: int | None = None) -> list[Page]:
        """List the pages of a column in one cluster.

        Args:
            cluster: Index of the cluster.
            column: Index of the column; where the cluster stores its field in another way, of that instead.
            due: Elements there should be: a field that was added later lacks the first of them, which are
                zeros (a page of no bytes).

        Raises:
            ValueError: When there are more.
        """
        links = self._links[cluster]
        if column < len(links) and links[column].suppressed:
            field = self._ntuple.column_records[column].field_id
            column = next(other for other in self._alternatives[field] if not links[other].suppressed)
        stored = links[column].pages if column < len(links) else []
        absent = 0 if due is None else due - sum(page.num_elements for page in stored)
        if absent < 0:
            raise ValueError(f"column {column} has {-absent:,} elements too many in cluster {cluster}")
        return list(_placed(column, stored, absent))

    def dtype(self, column: int) -> np.dtype[Any]:
        """Return the type of a column's elements."""
        dtype: np.dtype[Any] = self._ntuple.get_field_metadata(column).dtype
        return dtype

    def decode(self, page: Page, data: memoryview) -> npt.NDArray[Any]:
        """Return the elements of a page.

        Raises:
            ValueError: When the page's checksum says that its bytes are not what was written.
        """
        if page.checksum:
            written = int.from_bytes(data[page.bytes :], "little")
            if xxhash.xxh3_64_intdigest(data[: page.bytes]) != written:
                raise ValueError("a page is not what its checksum says")
        meta = self._ntuple.get_field_metadata(page.column)
        if not page.bytes:
            return np.zeros(page.elements, meta.dtype)
        bits = 1 if meta.isbit else meta.nbits
        size = (page.elements * bits + 7) // 8
        raw = self._decompress(data[: page.bytes], size)
        elements = np.empty(page.elements, meta.dtype)
        elements.view(np.uint8)[:size] = np.frombuffer(raw, np.uint8, size)
        self._ntuple.deserialize_page_decompressed_buffer(elements, meta)
        self._ntuple.post_process(elements, meta)
        return elements

    def _decompress(self, data: memoryview, size: int) -> Any:
        if len(data) >= size:  # what does not shrink is stored as it is
            return data
        chunk = Chunk.wrap(self._ntuple.file.source, np.frombuffer(data, np.uint8))
        return uproot.compression.decompress(chunk, Cursor(0), {}, len(data), size).raw_data


def _page_lists(ntuple: Any) -> Iterator[Any]:
    """Read the lists of pages, as uproot would, which does not look at their checksums (uproot 5.7.7)."""
    for group in ntuple.footer.cluster_group_records:
        link = group.page_list_link
        chunk, cursor = ntuple.read_locator(link.locator, link.env_uncomp_size)
        envelope = PageLink().read(chunk, cursor, {})
        if xxhash.xxh3_64_intdigest(chunk.raw_data[:-CHECKSUM_BYTES]) != envelope.checksum:
            raise ValueError("a list of pages is not what its checksum says")
        yield envelope


def _placed(column: int, stored: list[Any], absent: int) -> Iterator[Page]:
    if absent:
        yield Page(column, 0, absent, 0, 0, False)
    first = absent
    for page in stored:
        locator = page.locator
        yield Page(column, first, page.num_elements, locator.offset, locator.num_bytes, page.has_checksum)
        first += page.num_elements
