# SPDX-License-Identifier: Apache-2.0
"""PyTorch for what needs it, or a sentence that says what is missing and what works without."""


def torch_for(what: str, minimum=None, rest: str = "Quantizing and Model work without it"):
    """The torch module. what: who needs it; minimum: (major, minor), where not every version will do; rest: what works without."""
    wanted = f"{what} need{'' if ' and ' in what else 's'} PyTorch" + ("" if minimum is None else " {}.{} or later".format(*minimum))
    try:
        import torch
    except (ImportError, OSError) as e:  # OSError: a library that it is linked to, of another CUDA for one
        if isinstance(e, ModuleNotFoundError) and e.name == "torch":
            raise ImportError(f"{wanted}, which this Python does not have: pip install torch. {rest}") from e
        raise ImportError(f"{wanted}, and the one of this Python cannot be imported: {e}. {rest}") from e
    if minimum is not None and tuple(int(part) for part in torch.__version__.split("+")[0].split(".")[:2]) < minimum:
        raise ImportError(f"{wanted} for its stable ABI; this is {torch.__version__}. {rest}")
    return torch
