"""What of a call the tests look at besides its result: the operators it reaches, and the graphs it is compiled to."""

import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only


class Recorder(TorchDispatchMode):
    """The calls of our operators, as they reach the dispatcher: (overload, arguments)."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, overload, types, arguments=(), options=None):
        if overload.namespace == "ddfast":
            self.calls.append((overload, tree_map_only(torch.Tensor, torch.Tensor.detach, arguments)))
        return overload(*arguments, **(options or {}))

    def passed(self, name):
        """What each call passed for the argument of that name, where it has one."""
        named = [zip((it.name for it in call._schema.arguments), given, strict=True) for call, given in self.calls]
        return [value for arguments in named for key, value in arguments if key == name]


def compiled(function, dynamic, compiler="aot_eager"):
    """The function as one graph, and a counter of its compilations."""
    torch._dynamo.reset()
    counter = CompileCounterWithBackend(compiler)
    return torch.compile(function, fullgraph=True, dynamic=dynamic, backend=counter), counter
