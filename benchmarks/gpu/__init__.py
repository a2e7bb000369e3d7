"""Two commands that turn minutes on a GPU of a machine without network into evidence; `docs/gpu.md` says how and why.

__main__.py    the command line
steps.py       what is run, in the order of its value
session.py     shares out the time, carries out the steps, survives whatever they do
worker.py      the process that a step runs in, case by case
case.py        what a case and a step are, and what both sides of a worker's pipe say
archive.py     the one file of results
probe.py  smoke.py  captured.py  timing.py  runs.py  checked.py   the cases of the steps
bundle.py  images.py  cache.py  arrival.py   what is prepared beforehand, and how it is unpacked
reading.py     an archive into benchmarks/results/ and README
"""
