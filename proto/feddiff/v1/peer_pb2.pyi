from feddiff.v1 import transfer_pb2 as _transfer_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Heard(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Peer(_message.Message):
    __slots__ = ("silo", "address")
    SILO_FIELD_NUMBER: _ClassVar[int]
    ADDRESS_FIELD_NUMBER: _ClassVar[int]
    silo: str
    address: str
    def __init__(self, silo: _Optional[str] = ..., address: _Optional[str] = ...) -> None: ...

class Range(_message.Message):
    __slots__ = ("segment", "first", "end")
    SEGMENT_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    END_FIELD_NUMBER: _ClassVar[int]
    segment: str
    first: int
    end: int
    def __init__(self, segment: _Optional[str] = ..., first: _Optional[int] = ..., end: _Optional[int] = ...) -> None: ...

class Owned(_message.Message):
    __slots__ = ("range", "owner")
    RANGE_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    range: Range
    owner: str
    def __init__(self, range: _Optional[_Union[Range, _Mapping]] = ..., owner: _Optional[str] = ...) -> None: ...

class Source(_message.Message):
    __slots__ = ("silo", "digest")
    SILO_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    silo: str
    digest: bytes
    def __init__(self, silo: _Optional[str] = ..., digest: _Optional[bytes] = ...) -> None: ...

class DutyRequest(_message.Message):
    __slots__ = ("known", "patience_s")
    KNOWN_FIELD_NUMBER: _ClassVar[int]
    PATIENCE_S_FIELD_NUMBER: _ClassVar[int]
    known: str
    patience_s: float
    def __init__(self, known: _Optional[str] = ..., patience_s: _Optional[float] = ...) -> None: ...

class Duty(_message.Message):
    __slots__ = ("id", "round", "peers", "accepts", "folds", "samples", "keeps", "grants")
    ID_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    PEERS_FIELD_NUMBER: _ClassVar[int]
    ACCEPTS_FIELD_NUMBER: _ClassVar[int]
    FOLDS_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    KEEPS_FIELD_NUMBER: _ClassVar[int]
    GRANTS_FIELD_NUMBER: _ClassVar[int]
    id: str
    round: int
    peers: _containers.RepeatedCompositeFieldContainer[Peer]
    accepts: _containers.RepeatedCompositeFieldContainer[Accept]
    folds: _containers.RepeatedCompositeFieldContainer[Folding]
    samples: _containers.RepeatedCompositeFieldContainer[Sample]
    keeps: _containers.RepeatedCompositeFieldContainer[_transfer_pb2.Manifest]
    grants: _containers.RepeatedCompositeFieldContainer[Grant]
    def __init__(self, id: _Optional[str] = ..., round: _Optional[int] = ..., peers: _Optional[_Iterable[_Union[Peer, _Mapping]]] = ..., accepts: _Optional[_Iterable[_Union[Accept, _Mapping]]] = ..., folds: _Optional[_Iterable[_Union[Folding, _Mapping]]] = ..., samples: _Optional[_Iterable[_Union[Sample, _Mapping]]] = ..., keeps: _Optional[_Iterable[_Union[_transfer_pb2.Manifest, _Mapping]]] = ..., grants: _Optional[_Iterable[_Union[Grant, _Mapping]]] = ...) -> None: ...

class Grant(_message.Message):
    __slots__ = ("silo", "transfers")
    SILO_FIELD_NUMBER: _ClassVar[int]
    TRANSFERS_FIELD_NUMBER: _ClassVar[int]
    silo: str
    transfers: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, silo: _Optional[str] = ..., transfers: _Optional[_Iterable[str]] = ...) -> None: ...

class Accept(_message.Message):
    __slots__ = ("range", "elements", "base", "senders")
    RANGE_FIELD_NUMBER: _ClassVar[int]
    ELEMENTS_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    SENDERS_FIELD_NUMBER: _ClassVar[int]
    range: Range
    elements: int
    base: int
    senders: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, range: _Optional[_Union[Range, _Mapping]] = ..., elements: _Optional[int] = ..., base: _Optional[int] = ..., senders: _Optional[_Iterable[str]] = ...) -> None: ...

class Input(_message.Message):
    __slots__ = ("silo", "weight", "digest")
    SILO_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    silo: str
    weight: float
    digest: bytes
    def __init__(self, silo: _Optional[str] = ..., weight: _Optional[float] = ..., digest: _Optional[bytes] = ...) -> None: ...

class Carry(_message.Message):
    __slots__ = ("range", "silo")
    RANGE_FIELD_NUMBER: _ClassVar[int]
    SILO_FIELD_NUMBER: _ClassVar[int]
    range: Range
    silo: str
    def __init__(self, range: _Optional[_Union[Range, _Mapping]] = ..., silo: _Optional[str] = ...) -> None: ...

class Folding(_message.Message):
    __slots__ = ("result", "base", "inputs", "carries")
    RESULT_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    CARRIES_FIELD_NUMBER: _ClassVar[int]
    result: _transfer_pb2.Manifest
    base: int
    inputs: _containers.RepeatedCompositeFieldContainer[Input]
    carries: _containers.RepeatedCompositeFieldContainer[Carry]
    def __init__(self, result: _Optional[_Union[_transfer_pb2.Manifest, _Mapping]] = ..., base: _Optional[int] = ..., inputs: _Optional[_Iterable[_Union[Input, _Mapping]]] = ..., carries: _Optional[_Iterable[_Union[Carry, _Mapping]]] = ...) -> None: ...

class Folded(_message.Message):
    __slots__ = ("round", "transfer", "checksums", "lost", "encoded", "silo", "reason")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    TRANSFER_FIELD_NUMBER: _ClassVar[int]
    CHECKSUMS_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    ENCODED_FIELD_NUMBER: _ClassVar[int]
    SILO_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    round: int
    transfer: str
    checksums: bytes
    lost: bytes
    encoded: int
    silo: str
    reason: str
    def __init__(self, round: _Optional[int] = ..., transfer: _Optional[str] = ..., checksums: _Optional[bytes] = ..., lost: _Optional[bytes] = ..., encoded: _Optional[int] = ..., silo: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class Sample(_message.Message):
    __slots__ = ("owner", "result", "base", "chunk", "inputs", "before", "checksum", "lost")
    OWNER_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    INPUTS_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    owner: str
    result: _transfer_pb2.Manifest
    base: int
    chunk: int
    inputs: _containers.RepeatedCompositeFieldContainer[Input]
    before: bytes
    checksum: bytes
    lost: bytes
    def __init__(self, owner: _Optional[str] = ..., result: _Optional[_Union[_transfer_pb2.Manifest, _Mapping]] = ..., base: _Optional[int] = ..., chunk: _Optional[int] = ..., inputs: _Optional[_Iterable[_Union[Input, _Mapping]]] = ..., before: _Optional[bytes] = ..., checksum: _Optional[bytes] = ..., lost: _Optional[bytes] = ...) -> None: ...

class Judgement(_message.Message):
    __slots__ = ("round", "duty", "owner", "finding", "unreachable")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    DUTY_FIELD_NUMBER: _ClassVar[int]
    OWNER_FIELD_NUMBER: _ClassVar[int]
    FINDING_FIELD_NUMBER: _ClassVar[int]
    UNREACHABLE_FIELD_NUMBER: _ClassVar[int]
    round: int
    duty: str
    owner: str
    finding: str
    unreachable: bool
    def __init__(self, round: _Optional[int] = ..., duty: _Optional[str] = ..., owner: _Optional[str] = ..., finding: _Optional[str] = ..., unreachable: _Optional[bool] = ...) -> None: ...

class Complaint(_message.Message):
    __slots__ = ("round", "silo", "reason")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    SILO_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    round: int
    silo: str
    reason: str
    def __init__(self, round: _Optional[int] = ..., silo: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class Declared(_message.Message):
    __slots__ = ("manifest", "checksums", "encoded")
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    CHECKSUMS_FIELD_NUMBER: _ClassVar[int]
    ENCODED_FIELD_NUMBER: _ClassVar[int]
    manifest: _transfer_pb2.Manifest
    checksums: bytes
    encoded: int
    def __init__(self, manifest: _Optional[_Union[_transfer_pb2.Manifest, _Mapping]] = ..., checksums: _Optional[bytes] = ..., encoded: _Optional[int] = ...) -> None: ...

class Declaration(_message.Message):
    __slots__ = ("round", "revision", "updates")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    UPDATES_FIELD_NUMBER: _ClassVar[int]
    round: int
    revision: int
    updates: _containers.RepeatedCompositeFieldContainer[Declared]
    def __init__(self, round: _Optional[int] = ..., revision: _Optional[int] = ..., updates: _Optional[_Iterable[_Union[Declared, _Mapping]]] = ...) -> None: ...

class Tallied(_message.Message):
    __slots__ = ("source", "target", "segment", "kind", "parameters", "encoded", "wire", "seconds")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    TARGET_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    ENCODED_FIELD_NUMBER: _ClassVar[int]
    WIRE_FIELD_NUMBER: _ClassVar[int]
    SECONDS_FIELD_NUMBER: _ClassVar[int]
    source: str
    target: str
    segment: str
    kind: str
    parameters: int
    encoded: int
    wire: int
    seconds: float
    def __init__(self, source: _Optional[str] = ..., target: _Optional[str] = ..., segment: _Optional[str] = ..., kind: _Optional[str] = ..., parameters: _Optional[int] = ..., encoded: _Optional[int] = ..., wire: _Optional[int] = ..., seconds: _Optional[float] = ...) -> None: ...

class Tallies(_message.Message):
    __slots__ = ("round", "rows")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    round: int
    rows: _containers.RepeatedCompositeFieldContainer[Tallied]
    def __init__(self, round: _Optional[int] = ..., rows: _Optional[_Iterable[_Union[Tallied, _Mapping]]] = ...) -> None: ...
