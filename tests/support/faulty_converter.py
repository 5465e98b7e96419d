"""Run a converter program with a fault: `faulty_converter.py LAYER [OPTION…] to_FORMAT.py` spoils the weight of LAYER before conversion.

The weights of every other output channel change their sign, in whichever part of the network is converted.
"""

import runpy
import sys
from pathlib import Path

from edgecompress.network import exported as programs
from edgecompress.network.constants import get_constant
from edgecompress.network.subgraph import enclosing_modules, graph_of


def main() -> None:
    layer, (converter,) = sys.argv[1], [arg for arg in sys.argv if Path(arg).name.startswith("to_")]
    read = programs.read_program

    def read_and_spoil(path):
        program = read(path)
        graph = graph_of(program)
        for node in graph.graph.nodes:
            if layer in enclosing_modules(node)[-1:] and len(node.args) > 1 and getattr(node.args[1], "op", "") == "get_attr":
                weight = get_constant(graph, node.args[1].target)  # shared with the program
                weight.data[::2] *= -1
        return program

    programs.read_program = read_and_spoil
    sys.argv = [converter]
    runpy.run_path(converter, run_name="__main__")


main()
