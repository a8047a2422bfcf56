"""Pickles read without running anything.

A pickle is a program for a small stack machine. Python's own machine imports and calls whatever the program names; this
one has no way to import or call. It knows the instructions that `pickle.dump` writes for plain values, and a table of
names (a `Language`), each of which makes an inert record of ours. Anything else ends the reading.

Nothing is taken on trust: lengths are checked against the file, instructions are counted, long bytes and texts stay in
the file as `Span`, and dictionary keys are short texts or small numbers (hashing a tuple nested deeply enough would
overflow the interpreter's stack).
"""

from __future__ import annotations

import os
import pickle
import pickletools
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

MOST_OPERATIONS = 1_000_000  # a network of 300 million parameters takes a tenth of it
LONG_TEXT = 4096  # no text that we look at is longer
LONG_LINE = 512
LONG_NUMBER = 64  # bytes
CHUNK = 1 << 13
NUMBER_TYPE = "numpy.dtype"


class Unreadable(Exception):
    """Why a file is refused, and what to do, as two parts of a sentence."""

    def __init__(self, reason: str, remedy: str = "download it again from its publisher") -> None:
        super().__init__(reason)
        self.reason, self.remedy = reason, remedy


def cut_off(at: int) -> Unreadable:
    return Unreadable(f"it is cut off or damaged at byte {at}")


def foreign(what: str) -> Unreadable:
    return Unreadable(
        f"it asks for {what}, which no EDM checkpoint needs; nothing of it was run",
        "take the file from a publisher you trust",
    )


def shown(text: str) -> str:
    """A name out of a file that nobody vouches for, fit for one line."""
    return repr(text if len(text) <= 80 else f"{text[:80]}...")


@dataclass(frozen=True)
class Span:
    """Bytes that stay in the file."""

    start: int
    length: int


@dataclass(eq=False, repr=False)
class Record:
    """An object of a class we do not have: the class's name and what the object held."""

    kind: str
    state: dict[Any, Any] | None = None


@dataclass(frozen=True)
class Name:
    """A name that a pickle mentioned, and that its language knows."""

    module: str
    name: str


@dataclass
class Allowance:
    """What a whole file may cost, however its parts are nested."""

    operations: int
    bytes: int

    def take(self, count: int) -> None:
        self.bytes -= count
        if self.bytes < 0:
            raise Unreadable("its tensors claim more bytes than the file has")


class Source:
    """A stretch of a file that is read from front to back and never beyond its end."""

    def __init__(self, handle: int, start: int, end: int) -> None:
        self.handle, self.at, self.end = handle, start, end
        self.chunk, self.first = b"", start

    def read(self, count: int) -> bytes:
        begin = self.at - self.first
        if begin + count > len(self.chunk):
            self.fill(count)
            begin = 0
        self.at += count
        return self.chunk[begin : begin + count]

    def fill(self, count: int) -> None:
        left = self.end - self.at
        if count <= left:
            self.chunk, self.first = os.pread(self.handle, min(max(count, CHUNK), left), self.at), self.at
        if count > left or len(self.chunk) < count:
            raise cut_off(self.at)

    def starts_with(self, letters: bytes) -> bool:
        return len(letters) <= self.end - self.at and os.pread(self.handle, len(letters), self.at) == letters

    def number(self, layout: str) -> Any:
        return struct.unpack(layout, self.read(struct.calcsize(layout)))[0]

    def skip(self, length: int) -> Span:
        if not 0 <= length <= self.end - self.at:
            raise cut_off(self.at)
        span = Span(self.at, length)
        self.at += length
        self.chunk, self.first = (self.chunk, self.first) if self.at < self.first + len(self.chunk) else (b"", self.at)
        return span

    def text(self, length: int) -> str | Span:
        if length > LONG_TEXT:
            return self.skip(length)
        try:
            return self.read(length).decode()
        except UnicodeDecodeError:
            raise cut_off(self.at) from None

    def line(self) -> str:
        """Up to a line's end, as the oldest instructions have it."""
        letters = bytearray()
        while (letter := self.read(1)) != b"\n":
            letters += letter
            if len(letters) > LONG_LINE:
                raise cut_off(self.at)
        try:
            return letters.decode()
        except UnicodeDecodeError:
            raise cut_off(self.at) from None


@dataclass(frozen=True)
class Language:
    """Names that a pickle may use.

    calls: what stands for calling one, given the machine and the arguments. classes: what stands for a new object of one.
    words: may be mentioned, no more. persistent: what stands for an object kept outside of the pickle.
    """

    calls: Mapping[Name, Callable[[Machine, tuple[Any, ...]], Any]] = field(default_factory=dict)
    classes: Mapping[Name, Callable[[], Any]] = field(default_factory=dict)
    words: frozenset[Name] = frozenset()
    persistent: Callable[[Any], Any] | None = None


class Machine:
    """The stack machine; `run` reads one pickle and leaves the source behind its end."""

    def __init__(self, source: Source, language: Language, allowance: Allowance) -> None:
        self.source, self.language, self.allowance = source, language, allowance
        self.stack: list[Any] = []
        self.marks: list[int] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        read, operations = self.source.read, OPERATIONS
        while (code := read(1)) != pickle.STOP:
            self.allowance.operations -= 1
            if self.allowance.operations < 0:
                raise Unreadable(f"it has more than the {MOST_OPERATIONS:,} instructions that a checkpoint could need")
            operation = operations.get(code)
            if operation is None:
                raise foreign(f"the instruction {instruction(code)}")
            operation(self)
        return self.pop()

    def pop(self) -> Any:
        if len(self.stack) <= (self.marks[-1] if self.marks else 0):
            raise cut_off(self.source.at)
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        if not self.marks:
            raise cut_off(self.source.at)
        start = self.marks.pop()
        items = self.stack[start:]
        del self.stack[start:]
        return items

    def top(self, kind: type) -> Any:
        value = self.pop()
        self.stack.append(value)
        if type(value) is not kind:
            raise cut_off(self.source.at)
        return value


def instruction(code: bytes) -> str:
    known = [op.name for op in pickletools.opcodes if op.code == code.decode("latin-1")]
    return known[0] if known else f"{code[0]:#04x}"


def checked_key(key: Any) -> str | int | None:
    if key is None or type(key) is str or (type(key) is int and abs(key) < 1 << 31):
        return key
    raise Unreadable(f"one of its dictionaries has a key that is a {type(key).__name__}, expected a name")


def put(machine: Machine, target: dict[Any, Any], items: list[Any]) -> None:
    if len(items) % 2:
        raise cut_off(machine.source.at)
    for key, value in zip(items[::2], items[1::2], strict=True):
        target[checked_key(key)] = value


# Instructions, by what they do. Each takes the machine.
def push(value: Callable[[Machine], Any]) -> Callable[[Machine], None]:
    def operation(m: Machine) -> None:
        m.stack.append(value(m))

    return operation


def whole_number(text: str) -> int:
    if len(text) > LONG_NUMBER:
        raise Unreadable("one of its numbers is too long")
    try:
        return int(text)
    except ValueError:
        raise Unreadable(f"{shown(text)} stands where a number should") from None


def int_line(m: Machine) -> int | bool:
    line = m.source.line()
    return line == "01" if line in ("00", "01") else whole_number(line)


def float_line(m: Machine) -> float:
    line = m.source.line()
    try:
        return float(line)
    except ValueError:
        raise Unreadable(f"{shown(line)} stands where a number should") from None


def long_bytes(m: Machine, length: int) -> int:
    if not 0 <= length <= LONG_NUMBER:
        raise Unreadable("one of its numbers is too long")
    return int.from_bytes(m.source.read(length), "little", signed=True)


def protocol(m: Machine) -> None:
    version = m.source.number("<B")
    if version > pickle.HIGHEST_PROTOCOL:
        raise Unreadable(f"it is written in pickle protocol {version}, known are those up to {pickle.HIGHEST_PROTOCOL}")


def frame(m: Machine) -> None:
    """Frames group instructions for faster reading; only their length can be wrong."""
    if m.source.number("<Q") > m.source.end - m.source.at:
        raise cut_off(m.source.at)


def mark(m: Machine) -> None:
    m.marks.append(len(m.stack))


def pop(m: Machine) -> None:
    if m.marks and m.marks[-1] == len(m.stack):
        m.marks.pop()
    else:
        m.pop()


def duplicate(m: Machine) -> None:
    value = m.pop()
    m.stack += [value, value]


def append(m: Machine) -> None:
    value = m.pop()
    m.top(list).append(value)


def extend(m: Machine) -> None:
    items = m.pop_to_mark()
    m.top(list).extend(items)


def tuple_of(count: int) -> Callable[[Machine], None]:
    def operation(m: Machine) -> None:
        items = [m.pop() for _ in range(count)]
        m.stack.append(tuple(reversed(items)))

    return operation


def new_dict(m: Machine) -> dict[Any, Any]:
    items, made = m.pop_to_mark(), dict[Any, Any]()
    put(m, made, items)
    return made


def set_item(m: Machine) -> None:
    value, key = m.pop(), m.pop()
    m.top(dict)[checked_key(key)] = value


def set_items(m: Machine) -> None:
    items = m.pop_to_mark()
    put(m, m.top(dict), items)


def recall(m: Machine, index: int) -> Any:
    if index not in m.memo:
        raise cut_off(m.source.at)
    return m.memo[index]


def remember(index: Callable[[Machine], int]) -> Callable[[Machine], None]:
    def operation(m: Machine) -> None:
        value = m.pop()
        m.stack.append(value)
        m.memo[index(m)] = value

    return operation


def known_name(m: Machine, module: Any, name: Any) -> Name:
    if not (type(module) is str and type(name) is str):
        raise foreign("a name that is no text")
    found = Name(module, name)
    language = m.language
    if not (found in language.calls or found in language.classes or found in language.words):
        raise foreign(f"{shown(module)} {shown(name)}")
    return found


def stacked_name(m: Machine) -> Name:
    name, module = m.pop(), m.pop()
    return known_name(m, module, name)


def call(m: Machine) -> Any:
    arguments, called = m.pop(), m.pop()
    stands_for = m.language.calls.get(called) if type(called) is Name else None
    if stands_for is None or type(arguments) is not tuple:
        raise foreign(f"a call of a {described(called)}")
    return stands_for(m, arguments)


def new_object(m: Machine) -> Any:
    arguments, kind = m.pop(), m.pop()
    made = m.language.classes.get(kind) if type(kind) is Name else None
    if made is None or arguments != ():
        raise foreign(f"a new object of a {described(kind)}")
    return made()


def described(value: Any) -> str:
    return f"{value.module}.{value.name}" if type(value) is Name else type(value).__name__


def build(m: Machine) -> None:
    """State goes into a record that has none yet, as data; an empty state changes nothing."""
    state = m.pop()
    target = m.pop()
    m.stack.append(target)
    if type(target) is Record and target.state is None and type(state) is dict:
        target.state = state
    elif type(target) is Record and target.kind == NUMBER_TYPE and type(state) is tuple:
        little_endian(state)
    elif not (type(target) is dict and state == {}):
        raise foreign(f"a change of a {described(target)}")


def little_endian(state: tuple[Any, ...]) -> None:
    """The state of a numpy number type: its version, then its byte order."""
    if len(state) < 2 or state[1] not in ("<", "|", "="):
        raise Unreadable("its numbers are not little-endian", "save it again on an ordinary machine")


def persistent(m: Machine) -> Any:
    if m.language.persistent is None:
        raise foreign("an object that is kept outside of the file")
    return m.language.persistent(m.pop())


def number(layout: str) -> Callable[[Machine], Any]:
    return lambda m: m.source.number(layout)


OPERATIONS: dict[bytes, Callable[[Machine], None]] = {
    pickle.PROTO: protocol,
    pickle.FRAME: frame,
    pickle.MARK: mark,
    pickle.POP: pop,
    pickle.POP_MARK: lambda m: m.pop_to_mark().clear(),
    pickle.DUP: duplicate,
    pickle.NONE: push(lambda _: None),
    pickle.NEWTRUE: push(lambda _: True),
    pickle.NEWFALSE: push(lambda _: False),
    pickle.INT: push(int_line),
    pickle.LONG: push(lambda m: whole_number(m.source.line().removesuffix("L"))),
    pickle.BININT: push(number("<i")),
    pickle.BININT1: push(number("<B")),
    pickle.BININT2: push(number("<H")),
    pickle.LONG1: push(lambda m: long_bytes(m, m.source.number("<B"))),
    pickle.LONG4: push(lambda m: long_bytes(m, m.source.number("<i"))),
    pickle.FLOAT: push(float_line),
    pickle.BINFLOAT: push(number(">d")),
    pickle.SHORT_BINUNICODE: push(lambda m: m.source.text(m.source.number("<B"))),
    pickle.BINUNICODE: push(lambda m: m.source.text(m.source.number("<I"))),
    pickle.BINUNICODE8: push(lambda m: m.source.text(m.source.number("<Q"))),
    pickle.SHORT_BINBYTES: push(lambda m: m.source.skip(m.source.number("<B"))),
    pickle.BINBYTES: push(lambda m: m.source.skip(m.source.number("<I"))),
    pickle.BINBYTES8: push(lambda m: m.source.skip(m.source.number("<Q"))),
    pickle.EMPTY_LIST: push(lambda _: []),
    pickle.LIST: push(Machine.pop_to_mark),
    pickle.APPEND: append,
    pickle.APPENDS: extend,
    pickle.EMPTY_SET: push(lambda _: []),  # a set's members are never asked for
    pickle.ADDITEMS: extend,
    pickle.FROZENSET: push(Machine.pop_to_mark),
    pickle.EMPTY_TUPLE: push(lambda _: ()),
    pickle.TUPLE: push(lambda m: tuple(m.pop_to_mark())),
    pickle.TUPLE1: tuple_of(1),
    pickle.TUPLE2: tuple_of(2),
    pickle.TUPLE3: tuple_of(3),
    pickle.EMPTY_DICT: push(lambda _: {}),
    pickle.DICT: push(new_dict),
    pickle.SETITEM: set_item,
    pickle.SETITEMS: set_items,
    pickle.GET: push(lambda m: recall(m, whole_number(m.source.line()))),
    pickle.BINGET: push(lambda m: recall(m, m.source.number("<B"))),
    pickle.LONG_BINGET: push(lambda m: recall(m, m.source.number("<I"))),
    pickle.PUT: remember(lambda m: whole_number(m.source.line())),
    pickle.BINPUT: remember(lambda m: m.source.number("<B")),
    pickle.LONG_BINPUT: remember(lambda m: m.source.number("<I")),
    pickle.MEMOIZE: remember(lambda m: len(m.memo)),
    pickle.GLOBAL: push(lambda m: known_name(m, m.source.line(), m.source.line())),
    pickle.STACK_GLOBAL: push(stacked_name),
    pickle.REDUCE: push(call),
    pickle.NEWOBJ: push(new_object),
    pickle.BUILD: build,
    pickle.BINPERSID: push(persistent),
}
