"""What may be done for a model on the machine that judges it: not everywhere what a command line may do."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Allowed:
    """Everything, unless said otherwise.

    Attributes:
        code: versions without an ONNX form may be loaded, which runs code of their own.
        files: the policy's dataset may be a file of this machine, or at any address that this machine reaches; else it
            has to be an artifact that MLflow gives to whoever asks.
    """

    code: bool = True
    files: bool = True


ALL = Allowed()
