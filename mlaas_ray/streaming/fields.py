"""Fields: what the fields of an RNTuple are called, and which of its columns hold their values.

An RNTuple stores a field as columns of plain numbers: a list is a column of where each list ends, and the
columns of what it lists; a record is the columns of its members (RNTuple Binary Format Specification 1.0,
"Mapping of C++ Types to Fields and Columns").
"""

from __future__ import annotations

import math
import re
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Any

import uproot

from mlaas_ray.core.columns import Kind

_ROLE = uproot.const.RNTupleFieldRole
# A list of at most one value is no list to a physicist, and no value may be missing from a flat column.
_OPTIONAL = ("std::optional", "std::unique_ptr")


@dataclass(frozen=True, slots=True)
class ListOf:
    """An axis of lists.

    Attributes:
        ends: Index of the column that holds where each list ends.
    """

    ends: int


@dataclass(frozen=True, slots=True)
class Times:
    """An axis of arrays of one size.

    Attributes:
        length: Values of each array.
    """

    length: int


@dataclass(frozen=True, slots=True)
class Field:
    """Where the values of a column are.

    Attributes:
        type: C++ type, for people.
        axes: What stands between an event and a value, from outside.
        values: Index of the column of the values.
        counts: Whether the column's values are ends of lists, of which the lengths are wanted.
        field_id: Of the innermost field, which another may show under its own name.
    """

    type: str
    axes: tuple[ListOf | Times, ...]
    values: int
    counts: bool
    field_id: int

    @property
    def kind(self) -> Kind:
        """The kind of its column."""
        if any(isinstance(axis, ListOf) for axis in self.axes):
            return "jagged"
        return "fixed" if self.axes else "flat"

    @property
    def length(self) -> int:
        """Values of an event when fixed, else 1."""
        if self.kind != "fixed":
            return 1
        return math.prod(axis.length for axis in self.axes if isinstance(axis, Times))

    @property
    def nested(self) -> bool:
        """Whether one list an event loses which list a value was in."""
        return self.kind == "jagged" and len(self.axes) > 1


@dataclass(frozen=True, slots=True)
class _Place:
    """Where in the tree of fields a visit has come."""

    name: str = ""
    type: str = ""
    axes: tuple[ListOf | Times, ...] = ()


def find_fields(ntuple: Any) -> tuple[dict[str, Field], dict[str, str]]:
    """Name every field of numbers in an RNTuple; members of records are ``<field>.<member>``.

    What one field shows under two names appears once: the importer of NanoAOD keeps ``Muon_pt`` and its like
    in a collection without a name, ``_collection3``, and shows each as a field of its own.

    Returns:
        The fields by name; and the types of those that are no numbers.
    """
    visit = _Visit(ntuple)
    for field_id, record in enumerate(ntuple.field_records):
        if record.parent_field_id == field_id:
            try:
                visit.field(field_id, _Place())
            except (ValueError, LookupError) as error:  # columns other than its type is stored in
                visit.others[record.field_name] = f"{record.type_name}, its description is wrong: {error}"
    shown = {record.source_field_id for record in ntuple.field_records} - {None}
    fields = {
        name: field
        for name, field in visit.found.items()
        if not (name.startswith("_collection") and field.field_id in shown)
    }
    return fields, visit.others


class _Visit:
    """A walk down the tree of fields."""

    def __init__(self, ntuple: Any) -> None:
        self.found: dict[str, Field] = {}
        self.others: dict[str, str] = {}
        self._records = ntuple.field_records
        self._members: dict[int, list[int]] = defaultdict(list)
        for field_id, record in enumerate(self._records):
            if record.parent_field_id != field_id:
                self._members[record.parent_field_id].append(field_id)
        # Of a field stored in several ways the first stands for all: clusters say which of them they use.
        self._columns: dict[int, list[Any]] = defaultdict(list)
        for column in ntuple.column_records:
            if column.repr_idx == 0:
                self._columns[column.field_id].append(column)

    def field(self, field_id: int, place: _Place) -> None:
        """Note a field and what is in it."""
        record = self._records[field_id]
        if not place.name:
            place = replace(place, name=record.field_name)
        # The type of the outermost field that holds only this: that is what its author wrote.
        place = replace(place, type=place.type or record.type_name)
        role, members = record.struct_role, self._members[field_id]
        if role == _ROLE.COLLECTION and len(members) == 1 and not record.type_name.startswith(_OPTIONAL):
            [column] = self._own_columns(field_id)
            self.field(members[0], replace(place, axes=(*place.axes, ListOf(column.idx))))
        elif role == _ROLE.RECORD:
            for member in members:
                self._member(member, place)
        elif role == _ROLE.LEAF and record.repetition and members:
            self.field(members[0], replace(place, axes=(*place.axes, Times(record.repetition))))
        elif role == _ROLE.LEAF:
            self._leaf(field_id, place)
        else:
            self.others[place.name] = place.type

    def _member(self, field_id: int, place: _Place) -> None:
        name = self._records[field_id].field_name
        if re.fullmatch(r":_\d+", name):  # a base class, whose members count as the record's own
            self.field(field_id, replace(place, type=""))
            return
        own = name[1:] if re.fullmatch(r"_\d+", name) else name  # of a std::tuple, as uproot calls it
        typename = self._records[field_id].type_name
        self.field(field_id, replace(place, name=f"{place.name}.{own}", type=typename))

    def _leaf(self, field_id: int, place: _Place) -> None:
        record, members = self._records[field_id], self._members[field_id]
        columns = self._own_columns(field_id)
        if not columns and len(members) == 1:  # std::atomic and enumerations
            self.field(members[0], place)
            return
        if len(columns) != 1 or place.name in self.found:  # two columns are a string
            self.others[place.name] = place.type
            return
        axes = (*place.axes, Times(record.repetition)) if record.repetition else place.axes  # std::bitset
        counts = "RNTupleCardinality" in record.type_name
        self.found[place.name] = Field(place.type, axes, columns[0].idx, counts, field_id)

    def _own_columns(self, field_id: int) -> list[Any]:
        source = self._records[field_id].source_field_id
        return self._columns[field_id if source is None else source]
