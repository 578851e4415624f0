"""Every error feddiff raises on purpose, in one tree.

    FedDiffError
    ├── ConfigError              a file or flag says something that cannot be
    ├── DataError                the images cannot be used
    ├── StoreError               the state directory cannot be used
    │   └── NewerState
    ├── IdentityError            who you are does not give you this
    │   ├── UnknownSilo
    │   ├── InvitationSpent
    │   ├── CertificateExpired
    │   └── Revoked
    ├── ProtocolError            a peer breaks the contract, or we would
    ├── TransferError            a transfer failed; it can be resumed
    │   ├── OffsetMismatch
    │   ├── DigestMismatch
    │   ├── TooLarge
    │   └── PeerUnavailable
    ├── RoundError               the round does not want this
    │   ├── RoundClosed
    │   └── NotSelected
    ├── UpdateRejected           an update that must not be averaged
    │   ├── NotFinite
    │   └── WrongShape
    ├── AuditError               the audit log is not what was written
    └── FederatorUnavailable     nobody answers; try again later

A class's docstring is the sentence that an operator reads; ``str(error)`` holds the facts of the case.
``exit_code`` follows sysexits.h, so that systemd can tell "wait and restart" from "a person must act".
"""

from __future__ import annotations


class FedDiffError(Exception):
    """feddiff cannot go on."""

    exit_code = 70

    @property
    def sentence(self) -> str:
        """One line for a person: what is wrong, then the facts."""
        return f"{(type(self).__doc__ or '').strip().splitlines()[0].rstrip('.')}: {self}"


class ConfigError(FedDiffError):
    """The configuration is wrong."""

    exit_code = 78


class DataError(FedDiffError):
    """The images cannot be used."""

    exit_code = 66


class StoreError(FedDiffError):
    """The state directory cannot be used."""

    exit_code = 74


class NewerState(StoreError):
    """The state directory is a newer feddiff's."""

    exit_code = 78  # no restart makes it older


class IdentityError(FedDiffError):
    """This identity is refused."""

    exit_code = 77


class UnknownSilo(IdentityError):
    """The federation does not know this silo."""


class InvitationSpent(IdentityError):
    """The invitation is spent, expired or not from this federation."""


class CertificateExpired(IdentityError):
    """The certificate is outside its dates."""


class Revoked(IdentityError):
    """This certificate is revoked."""


class ProtocolError(FedDiffError):
    """The other end breaks the protocol."""

    exit_code = 76


class TransferError(FedDiffError):
    """The transfer failed; it can be resumed."""

    exit_code = 75


class OffsetMismatch(TransferError):
    """A chunk came out of its order."""


class DigestMismatch(TransferError):
    """What arrived is not what was sent."""


class TooLarge(TransferError):
    """A length from the wire is over its bound."""


class PeerUnavailable(TransferError):
    """Another silo does not answer."""


class RoundError(FedDiffError):
    """The round does not want this."""

    exit_code = 75


class RoundClosed(RoundError):
    """The round is over."""


class NotSelected(RoundError):
    """The plan gives this silo no such work."""


class UpdateRejected(FedDiffError):
    """The update must not be averaged."""

    exit_code = 65


class NotFinite(UpdateRejected):
    """The weights hold NaN or infinity."""


class WrongShape(UpdateRejected):
    """The weights are not of the model's shape."""


class AuditError(FedDiffError):
    """The audit log is broken."""

    exit_code = 65


class FederatorUnavailable(FedDiffError):
    """The federator does not answer."""

    exit_code = 69
