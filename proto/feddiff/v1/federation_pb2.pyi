from feddiff.v1 import peer_pb2 as _peer_pb2
from feddiff.v1 import transfer_pb2 as _transfer_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Held(_message.Message):
    __slots__ = ("segment", "version", "digest")
    SEGMENT_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    segment: str
    version: int
    digest: str
    def __init__(self, segment: _Optional[str] = ..., version: _Optional[int] = ..., digest: _Optional[str] = ...) -> None: ...

class JoinRequest(_message.Message):
    __slots__ = ("protocol", "software", "samples", "labels", "held", "device", "layout_digest", "accepts_pool", "advertise")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    ACCEPTS_POOL_FIELD_NUMBER: _ClassVar[int]
    ADVERTISE_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    software: str
    samples: int
    labels: _containers.ScalarMap[str, int]
    held: _containers.RepeatedCompositeFieldContainer[Held]
    device: str
    layout_digest: str
    accepts_pool: bool
    advertise: str
    def __init__(self, protocol: _Optional[int] = ..., software: _Optional[str] = ..., samples: _Optional[int] = ..., labels: _Optional[_Mapping[str, int]] = ..., held: _Optional[_Iterable[_Union[Held, _Mapping]]] = ..., device: _Optional[str] = ..., layout_digest: _Optional[str] = ..., accepts_pool: _Optional[bool] = ..., advertise: _Optional[str] = ...) -> None: ...

class JoinReply(_message.Message):
    __slots__ = ("protocol", "software", "federation", "config", "config_digest", "layout_digest", "initial_digest", "statistics")
    PROTOCOL_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    FEDERATION_FIELD_NUMBER: _ClassVar[int]
    CONFIG_FIELD_NUMBER: _ClassVar[int]
    CONFIG_DIGEST_FIELD_NUMBER: _ClassVar[int]
    LAYOUT_DIGEST_FIELD_NUMBER: _ClassVar[int]
    INITIAL_DIGEST_FIELD_NUMBER: _ClassVar[int]
    STATISTICS_FIELD_NUMBER: _ClassVar[int]
    protocol: int
    software: str
    federation: str
    config: bytes
    config_digest: str
    layout_digest: str
    initial_digest: str
    statistics: str
    def __init__(self, protocol: _Optional[int] = ..., software: _Optional[str] = ..., federation: _Optional[str] = ..., config: _Optional[bytes] = ..., config_digest: _Optional[str] = ..., layout_digest: _Optional[str] = ..., initial_digest: _Optional[str] = ..., statistics: _Optional[str] = ...) -> None: ...

class TaskRequest(_message.Message):
    __slots__ = ("known_task", "patience_s", "held")
    KNOWN_TASK_FIELD_NUMBER: _ClassVar[int]
    PATIENCE_S_FIELD_NUMBER: _ClassVar[int]
    HELD_FIELD_NUMBER: _ClassVar[int]
    known_task: str
    patience_s: float
    held: _containers.RepeatedCompositeFieldContainer[Held]
    def __init__(self, known_task: _Optional[str] = ..., patience_s: _Optional[float] = ..., held: _Optional[_Iterable[_Union[Held, _Mapping]]] = ...) -> None: ...

class Task(_message.Message):
    __slots__ = ("id", "reason", "wait", "round", "finished", "renew", "audit")
    ID_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    WAIT_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    FINISHED_FIELD_NUMBER: _ClassVar[int]
    RENEW_FIELD_NUMBER: _ClassVar[int]
    AUDIT_FIELD_NUMBER: _ClassVar[int]
    id: str
    reason: str
    wait: Wait
    round: RoundTask
    finished: Finished
    renew: bool
    audit: str
    def __init__(self, id: _Optional[str] = ..., reason: _Optional[str] = ..., wait: _Optional[_Union[Wait, _Mapping]] = ..., round: _Optional[_Union[RoundTask, _Mapping]] = ..., finished: _Optional[_Union[Finished, _Mapping]] = ..., renew: _Optional[bool] = ..., audit: _Optional[str] = ...) -> None: ...

class Wait(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class RoundTask(_message.Message):
    __slots__ = ("round", "down", "up", "personal", "seed", "start", "pool", "revision", "peers", "owners", "sources")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    DOWN_FIELD_NUMBER: _ClassVar[int]
    UP_FIELD_NUMBER: _ClassVar[int]
    PERSONAL_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    POOL_FIELD_NUMBER: _ClassVar[int]
    REVISION_FIELD_NUMBER: _ClassVar[int]
    PEERS_FIELD_NUMBER: _ClassVar[int]
    OWNERS_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    round: int
    down: _containers.RepeatedCompositeFieldContainer[_transfer_pb2.Manifest]
    up: _containers.RepeatedCompositeFieldContainer[_transfer_pb2.Manifest]
    personal: _containers.RepeatedScalarFieldContainer[str]
    seed: int
    start: _containers.RepeatedCompositeFieldContainer[Held]
    pool: Portion
    revision: int
    peers: _containers.RepeatedCompositeFieldContainer[_peer_pb2.Peer]
    owners: _containers.RepeatedCompositeFieldContainer[_peer_pb2.Owned]
    sources: _containers.RepeatedCompositeFieldContainer[_peer_pb2.Source]
    def __init__(self, round: _Optional[int] = ..., down: _Optional[_Iterable[_Union[_transfer_pb2.Manifest, _Mapping]]] = ..., up: _Optional[_Iterable[_Union[_transfer_pb2.Manifest, _Mapping]]] = ..., personal: _Optional[_Iterable[str]] = ..., seed: _Optional[int] = ..., start: _Optional[_Iterable[_Union[Held, _Mapping]]] = ..., pool: _Optional[_Union[Portion, _Mapping]] = ..., revision: _Optional[int] = ..., peers: _Optional[_Iterable[_Union[_peer_pb2.Peer, _Mapping]]] = ..., owners: _Optional[_Iterable[_Union[_peer_pb2.Owned, _Mapping]]] = ..., sources: _Optional[_Iterable[_Union[_peer_pb2.Source, _Mapping]]] = ...) -> None: ...

class Portion(_message.Message):
    __slots__ = ("manifest", "digest")
    MANIFEST_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    manifest: _transfer_pb2.Manifest
    digest: str
    def __init__(self, manifest: _Optional[_Union[_transfer_pb2.Manifest, _Mapping]] = ..., digest: _Optional[str] = ...) -> None: ...

class Finished(_message.Message):
    __slots__ = ("rounds",)
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    rounds: int
    def __init__(self, rounds: _Optional[int] = ...) -> None: ...

class ReportRequest(_message.Message):
    __slots__ = ("round", "phase", "step", "steps", "metrics")
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    ROUND_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    round: int
    phase: str
    step: int
    steps: int
    metrics: _containers.ScalarMap[str, float]
    def __init__(self, round: _Optional[int] = ..., phase: _Optional[str] = ..., step: _Optional[int] = ..., steps: _Optional[int] = ..., metrics: _Optional[_Mapping[str, float]] = ...) -> None: ...

class ReportReply(_message.Message):
    __slots__ = ("abandon", "reason", "renew")
    ABANDON_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    RENEW_FIELD_NUMBER: _ClassVar[int]
    abandon: bool
    reason: str
    renew: bool
    def __init__(self, abandon: _Optional[bool] = ..., reason: _Optional[str] = ..., renew: _Optional[bool] = ...) -> None: ...

class Measured(_message.Message):
    __slots__ = ("metric", "value", "spread", "samples", "reference", "against", "extractor", "digest", "cautions")
    METRIC_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    SPREAD_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    AGAINST_FIELD_NUMBER: _ClassVar[int]
    EXTRACTOR_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    CAUTIONS_FIELD_NUMBER: _ClassVar[int]
    metric: str
    value: float
    spread: float
    samples: int
    reference: int
    against: str
    extractor: str
    digest: str
    cautions: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, metric: _Optional[str] = ..., value: _Optional[float] = ..., spread: _Optional[float] = ..., samples: _Optional[int] = ..., reference: _Optional[int] = ..., against: _Optional[str] = ..., extractor: _Optional[str] = ..., digest: _Optional[str] = ..., cautions: _Optional[_Iterable[str]] = ...) -> None: ...

class MeasureRequest(_message.Message):
    __slots__ = ("round", "numbers", "grid")
    ROUND_FIELD_NUMBER: _ClassVar[int]
    NUMBERS_FIELD_NUMBER: _ClassVar[int]
    GRID_FIELD_NUMBER: _ClassVar[int]
    round: int
    numbers: _containers.RepeatedCompositeFieldContainer[Measured]
    grid: bytes
    def __init__(self, round: _Optional[int] = ..., numbers: _Optional[_Iterable[_Union[Measured, _Mapping]]] = ..., grid: _Optional[bytes] = ...) -> None: ...

class MeasureReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ContributeRequest(_message.Message):
    __slots__ = ("offer", "piece")
    class Offer(_message.Message):
        __slots__ = ("size", "digest")
        SIZE_FIELD_NUMBER: _ClassVar[int]
        DIGEST_FIELD_NUMBER: _ClassVar[int]
        size: int
        digest: str
        def __init__(self, size: _Optional[int] = ..., digest: _Optional[str] = ...) -> None: ...
    OFFER_FIELD_NUMBER: _ClassVar[int]
    PIECE_FIELD_NUMBER: _ClassVar[int]
    offer: ContributeRequest.Offer
    piece: bytes
    def __init__(self, offer: _Optional[_Union[ContributeRequest.Offer, _Mapping]] = ..., piece: _Optional[bytes] = ...) -> None: ...

class ContributeReply(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...
