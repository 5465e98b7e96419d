"""Run one converter program on many requests in one process: `python -c DRIVER FOLDER PROGRAM REQUEST…`."""

DRIVER = """
import sys, importlib
sys.path[0] = sys.argv[1]
from edgecompress.errors import UnsupportedError
from edgecompress.records import ConversionRequest, from_json, to_json
program = importlib.import_module(f"converters.{sys.argv[2]}")
for path in sys.argv[3:]:
    request = from_json(open(path, "rb").read(), ConversionRequest, source=path)
    try:
        content, reply = program.convert(request)
    except UnsupportedError as error:
        open(path + ".refused", "w").write(str(error))
        continue
    open(request.output, "wb").write(content)
    open(path + ".reply", "wb").write(to_json(reply))
"""
