from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Manifest(_message.Message):
    __slots__ = ("transfer", "segment", "base_version", "version", "codec", "elements", "chunk_elements", "start")
    TRANSFER_FIELD_NUMBER: _ClassVar[int]
    SEGMENT_FIELD_NUMBER: _ClassVar[int]
    BASE_VERSION_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    CODEC_FIELD_NUMBER: _ClassVar[int]
    ELEMENTS_FIELD_NUMBER: _ClassVar[int]
    CHUNK_ELEMENTS_FIELD_NUMBER: _ClassVar[int]
    START_FIELD_NUMBER: _ClassVar[int]
    transfer: str
    segment: str
    base_version: int
    version: int
    codec: str
    elements: int
    chunk_elements: int
    start: int
    def __init__(self, transfer: _Optional[str] = ..., segment: _Optional[str] = ..., base_version: _Optional[int] = ..., version: _Optional[int] = ..., codec: _Optional[str] = ..., elements: _Optional[int] = ..., chunk_elements: _Optional[int] = ..., start: _Optional[int] = ...) -> None: ...

class Chunk(_message.Message):
    __slots__ = ("offer", "index", "payload", "checksum")
    OFFER_FIELD_NUMBER: _ClassVar[int]
    INDEX_FIELD_NUMBER: _ClassVar[int]
    PAYLOAD_FIELD_NUMBER: _ClassVar[int]
    CHECKSUM_FIELD_NUMBER: _ClassVar[int]
    offer: int
    index: int
    payload: bytes
    checksum: bytes
    def __init__(self, offer: _Optional[int] = ..., index: _Optional[int] = ..., payload: _Optional[bytes] = ..., checksum: _Optional[bytes] = ...) -> None: ...

class Commit(_message.Message):
    __slots__ = ("offer", "digest")
    OFFER_FIELD_NUMBER: _ClassVar[int]
    DIGEST_FIELD_NUMBER: _ClassVar[int]
    offer: int
    digest: bytes
    def __init__(self, offer: _Optional[int] = ..., digest: _Optional[bytes] = ...) -> None: ...

class Offer(_message.Message):
    __slots__ = ("manifests", "round")
    MANIFESTS_FIELD_NUMBER: _ClassVar[int]
    ROUND_FIELD_NUMBER: _ClassVar[int]
    manifests: _containers.RepeatedCompositeFieldContainer[Manifest]
    round: int
    def __init__(self, manifests: _Optional[_Iterable[_Union[Manifest, _Mapping]]] = ..., round: _Optional[int] = ...) -> None: ...

class Standing(_message.Message):
    __slots__ = ("items",)
    class Item(_message.Message):
        __slots__ = ("chunks", "committed", "digest")
        CHUNKS_FIELD_NUMBER: _ClassVar[int]
        COMMITTED_FIELD_NUMBER: _ClassVar[int]
        DIGEST_FIELD_NUMBER: _ClassVar[int]
        chunks: int
        committed: bool
        digest: bytes
        def __init__(self, chunks: _Optional[int] = ..., committed: _Optional[bool] = ..., digest: _Optional[bytes] = ...) -> None: ...
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    items: _containers.RepeatedCompositeFieldContainer[Standing.Item]
    def __init__(self, items: _Optional[_Iterable[_Union[Standing.Item, _Mapping]]] = ...) -> None: ...

class Part(_message.Message):
    __slots__ = ("chunk", "commit")
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    COMMIT_FIELD_NUMBER: _ClassVar[int]
    chunk: Chunk
    commit: Commit
    def __init__(self, chunk: _Optional[_Union[Chunk, _Mapping]] = ..., commit: _Optional[_Union[Commit, _Mapping]] = ...) -> None: ...

class SubmitRequest(_message.Message):
    __slots__ = ("offer", "parts")
    OFFER_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    offer: Offer
    parts: _containers.RepeatedCompositeFieldContainer[Part]
    def __init__(self, offer: _Optional[_Union[Offer, _Mapping]] = ..., parts: _Optional[_Iterable[_Union[Part, _Mapping]]] = ...) -> None: ...

class SubmitReply(_message.Message):
    __slots__ = ("standing", "committed")
    STANDING_FIELD_NUMBER: _ClassVar[int]
    COMMITTED_FIELD_NUMBER: _ClassVar[int]
    standing: Standing
    committed: _containers.RepeatedCompositeFieldContainer[Commit]
    def __init__(self, standing: _Optional[_Union[Standing, _Mapping]] = ..., committed: _Optional[_Iterable[_Union[Commit, _Mapping]]] = ...) -> None: ...

class FetchRequest(_message.Message):
    __slots__ = ("offer", "standing")
    OFFER_FIELD_NUMBER: _ClassVar[int]
    STANDING_FIELD_NUMBER: _ClassVar[int]
    offer: Offer
    standing: Standing
    def __init__(self, offer: _Optional[_Union[Offer, _Mapping]] = ..., standing: _Optional[_Union[Standing, _Mapping]] = ...) -> None: ...

class FetchReply(_message.Message):
    __slots__ = ("parts",)
    PARTS_FIELD_NUMBER: _ClassVar[int]
    parts: _containers.RepeatedCompositeFieldContainer[Part]
    def __init__(self, parts: _Optional[_Iterable[_Union[Part, _Mapping]]] = ...) -> None: ...
