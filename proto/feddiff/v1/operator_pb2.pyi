from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class StatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PauseRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ResumeRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StopRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class EvictRequest(_message.Message):
    __slots__ = ("silo", "reason")
    SILO_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    silo: str
    reason: str
    def __init__(self, silo: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class ReinstateRequest(_message.Message):
    __slots__ = ("silo",)
    SILO_FIELD_NUMBER: _ClassVar[int]
    silo: str
    def __init__(self, silo: _Optional[str] = ...) -> None: ...

class SiloStatus(_message.Message):
    __slots__ = ("name", "enrolled", "reachable", "planned", "training", "phase", "step", "steps", "loss", "samples", "silent_s", "committed", "up", "note", "plan", "down_mbit", "up_mbit", "certificate_days")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ENROLLED_FIELD_NUMBER: _ClassVar[int]
    REACHABLE_FIELD_NUMBER: _ClassVar[int]
    PLANNED_FIELD_NUMBER: _ClassVar[int]
    TRAINING_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    SILENT_S_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_FIELD_NUMBER: _ClassVar[int]
    UP_FIELD_NUMBER: _ClassVar[int]
    NOTE_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    DOWN_MBIT_FIELD_NUMBER: _ClassVar[int]
    UP_MBIT_FIELD_NUMBER: _ClassVar[int]
    CERTIFICATE_DAYS_FIELD_NUMBER: _ClassVar[int]
    name: str
    enrolled: bool
    reachable: bool
    planned: bool
    training: bool
    phase: str
    step: int
    steps: int
    loss: float
    samples: int
    silent_s: float
    committed: bool
    up: _containers.RepeatedScalarFieldContainer[str]
    note: str
    plan: str
    down_mbit: float
    up_mbit: float
    certificate_days: float
    def __init__(self, name: _Optional[str] = ..., enrolled: _Optional[bool] = ..., reachable: _Optional[bool] = ..., planned: _Optional[bool] = ..., training: _Optional[bool] = ..., phase: _Optional[str] = ..., step: _Optional[int] = ..., steps: _Optional[int] = ..., loss: _Optional[float] = ..., samples: _Optional[int] = ..., silent_s: _Optional[float] = ..., committed: _Optional[bool] = ..., up: _Optional[_Iterable[str]] = ..., note: _Optional[str] = ..., plan: _Optional[str] = ..., down_mbit: _Optional[float] = ..., up_mbit: _Optional[float] = ..., certificate_days: _Optional[float] = ...) -> None: ...

class StatusReply(_message.Message):
    __slots__ = ("federation", "phase", "round", "rounds", "reason", "silos", "wire_down", "wire_up", "config_digest", "policy", "plan", "server_days", "authority_days", "authority", "rotation", "audit")
    FEDERATION_FIELD_NUMBER: _ClassVar[int]
    PHASE_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    ROUNDS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SILOS_FIELD_NUMBER: _ClassVar[int]
    WIRE_DOWN_FIELD_NUMBER: _ClassVar[int]
    WIRE_UP_FIELD_NUMBER: _ClassVar[int]
    CONFIG_DIGEST_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    SERVER_DAYS_FIELD_NUMBER: _ClassVar[int]
    AUTHORITY_DAYS_FIELD_NUMBER: _ClassVar[int]
    AUTHORITY_FIELD_NUMBER: _ClassVar[int]
    ROTATION_FIELD_NUMBER: _ClassVar[int]
    AUDIT_FIELD_NUMBER: _ClassVar[int]
    federation: str
    phase: str
    round: int
    rounds: int
    reason: str
    silos: _containers.RepeatedCompositeFieldContainer[SiloStatus]
    wire_down: int
    wire_up: int
    config_digest: str
    policy: str
    plan: str
    server_days: float
    authority_days: float
    authority: str
    rotation: str
    audit: str
    def __init__(self, federation: _Optional[str] = ..., phase: _Optional[str] = ..., round: _Optional[int] = ..., rounds: _Optional[int] = ..., reason: _Optional[str] = ..., silos: _Optional[_Iterable[_Union[SiloStatus, _Mapping]]] = ..., wire_down: _Optional[int] = ..., wire_up: _Optional[int] = ..., config_digest: _Optional[str] = ..., policy: _Optional[str] = ..., plan: _Optional[str] = ..., server_days: _Optional[float] = ..., authority_days: _Optional[float] = ..., authority: _Optional[str] = ..., rotation: _Optional[str] = ..., audit: _Optional[str] = ...) -> None: ...
