"""What each of four norms can do in PyTorch: every cell is a program that ran and was right, or did not.

candidates.py has the norms, one file a group of features, running.py runs them.
"""

from benchmarks.record.plan import Plan
from benchmarks.record.recorder import Recorder

from .candidates import CANDIDATES, ON_CUDA_ONLY
from .catalogue import FEATURES
from .running import outcome

NAME = "features"
QUESTION = "what works in PyTorch: ours, F.rms_norm, a wrapped Triton norm, a Python custom_op"
PROTOCOL = "run in this process, or in one of its own"


def run(plan: Plan) -> None:
    names = [name for name, found in FEATURES.items() if plan.gpu or not found.gpu]
    candidates = [name for name in CANDIDATES if plan.gpu or name not in ON_CUDA_ONLY]
    with Recorder(plan, NAME, len(names) * len(candidates)) as recorder:
        for name in names:
            recorder.reporter.new_case(name)
            cell = {"metric": FEATURES[name].group, "op": name}
            for candidate in candidates:
                recorder.reporter.tick(candidate)
                if recorder.has(cell, [candidate]):
                    continue
                status = outcome(name, candidate, plan.device)
                value = 1 if status == "ok" else ""
                recorder.results.add(**cell, provider=candidate, protocol=PROTOCOL, status=status, value=value)
