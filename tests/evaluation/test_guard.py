"""Hostile and careless attacks: none may break more than one that does nothing, and nothing may stay changed."""

from __future__ import annotations

import builtins
import codecs
import contextlib
import copy
import copyreg
import decimal
import faulthandler
import gc
import locale
import numbers
import os
import resource
import signal
import subprocess
import sys
import threading
import time
import types
import warnings
import weakref
from fractions import Fraction
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import robustdup.evaluation.calls
import robustdup.evaluation.referee
import robustdup.projections
import robustdup.threat
from robustdup.attacks.passes import Count, Passes
from robustdup.attacks.process_hooks import dispatch_keys, kernels, monitors, words_and_numbers
from robustdup.errors import RunError
from robustdup.evaluation import held
from robustdup.evaluation.calls import PlannedStage
from robustdup.evaluation.cascade import CleanSamples, run_cascade
from robustdup.evaluation.context import Context
from robustdup.evaluation.guard import Refused
from robustdup.evaluation.referee import judge_images
from robustdup.models.attack_copy.prepare import Prepared
from robustdup.plugins import AttackSpec
from robustdup.records import Accuracy, Outcome
from robustdup.threat import ThreatModel
from tests.lanes import each_once
from tests.raising import raises

EPS = "0.01"


class Net(nn.Module):
    """Two classes by the mean of the image, by way of layers that a hostile attack may take hold of."""

    scale = 10.0

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 1)
        self.norm = nn.BatchNorm2d(1)
        self.head = nn.Linear(16, 2)
        self.shift = torch.zeros(2)
        self.factor = 1.0
        with torch.no_grad():
            self.conv.weight.fill_(1.0)
            self.conv.bias.fill_(-0.5)
            self.head.weight.copy_(torch.tensor([[-1.0], [1.0]]).expand(2, 16))
            self.head.bias.zero_()

    def forward(self, images):
        return self.factor * self.head(F.relu(self.norm(self.conv(images)) + 1).flatten(1) - 1) + self.shift


class Uncopyable(Net):
    """A network that copy.deepcopy refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.lock = threading.Lock()


def points():
    values = torch.cat([torch.linspace(0.22, 0.45, 10), torch.linspace(0.55, 0.78, 10)])
    return values.view(-1, 1, 1, 1).expand(-1, 1, 4, 4).contiguous(), (values > 0.5).long()


def stage(function, name="evil", batching="batch"):
    return PlannedStage(AttackSpec(name=name, function=function, norms=("Linf",), batching=batching), {}, {})


def setting(model):
    images, labels = points()
    original = Passes(model.eval(), 4)
    clean = judge_images(original, images, labels)
    context = Context(original, model, torch.device("cpu"), 10, 4, draws=1, seed=0, usual_margin=2.0)
    return CleanSamples(images, labels, torch.arange(len(labels)), clean), context


def step(model, images, labels, threat, *, rng):
    """Move towards the other class by 0.3, which breaks 20 of 20 in a ball that allows it."""
    return (images + torch.where(labels == 1, -0.3, 0.3).view(-1, 1, 1, 1)).clamp(0, 1)


def run(function, model=None, eps=EPS):
    """Return what the attack, and after it an honest one in the same small ball, broke."""
    samples, context = setting(model or Net())
    return run_cascade([stage(function), stage(step, "honest")], samples, ThreatModel("Linf", eps), context)


EVIL = {}


def evil(function):
    """Keep a hostile attack for the tests below."""
    EVIL[function.__name__] = function
    return function


@evil
def eps_of_the_threat_model(model, images, labels, threat, *, rng):
    object.__setattr__(threat, "eps", Fraction(1))
    return step(model, images, labels, threat, rng=rng)


@evil
def images_in_place(model, images, labels, threat, *, rng):
    adv = step(model, images, labels, threat, rng=rng)
    images.copy_(adv)
    labels.copy_(1 - labels)
    rng.index.zero_()
    return adv


@evil
def a_function_of_torch(model, images, labels, threat, *, rng):
    usual = F.conv2d
    F.conv2d = lambda *args, **options: usual(*args, **options) * -1
    return images


@evil
def a_name_of_torch(model, images, labels, threat, *, rng):
    torch.where = lambda *args: args[2]
    torch.Tensor.argmax = lambda self, *args, **options: torch.full((len(self),), 7)
    return images


@evil
def code_of_a_function(model, images, labels, threat, *, rng):
    def relu(input, inplace=False):
        return -input

    F.relu.__code__ = relu.__code__
    return images


@evil
def builtins_of_python(model, images, labels, threat, *, rng):
    builtins.len = lambda _: 0
    builtins.any = lambda _: False
    return images


@evil
def the_referee(model, images, labels, threat, *, rng):
    usual = robustdup.evaluation.referee.judge_images
    robustdup.evaluation.referee.judge_images = lambda *a, **o: usual(*a, **o).__class__(*(
        value * 0 for value in vars(usual(*a, **o)).values()
    ))  # fmt: skip
    robustdup.evaluation.calls.judge = None
    ThreatModel.project = lambda self, clean, adv: adv
    robustdup.evaluation.referee.bool = lambda _: False
    return step(model, images, labels, threat, rng=rng)


@evil
def the_class_of_the_model(model, images, labels, threat, *, rng):
    Net.forward = lambda self, images: torch.zeros(len(images), 2)
    nn.Linear.__call__ = lambda self, images: self.forward(images) * -1
    return images


@evil
def weights_of_the_original(model, images, labels, threat, *, rng):
    for module in gc.get_objects():
        if type(module) in (Net, Uncopyable):
            module.head.weight.data.mul_(-1)
            module.norm.running_mean.add_(1)
    return images


@evil
def attributes_of_the_original(model, images, labels, threat, *, rng):
    for module in gc.get_objects():
        if type(module) in (Net, Uncopyable):
            module.factor = -1.0
            module.shift.add_(torch.tensor([5.0, -5.0]))
            module.head = nn.Linear(16, 2)
            module.conv.register_forward_hook(lambda module, given, out: -out)
            module.forward = lambda images: torch.zeros(len(images), 2)
    return images


@evil
def a_finetuned_model(model, images, labels, threat, *, rng):
    weights = list(model.parameters())
    for _ in range(5):
        for weight in weights:
            weight.requires_grad_(True)
        grads = torch.autograd.grad(F.cross_entropy(model(images), 1 - labels), weights)
        for weight, grad in zip(weights, grads, strict=True):
            weight.data -= 5 * grad
    return images


@evil
def a_hook_of_all_modules(model, images, labels, threat, *, rng):
    nn.modules.module.register_module_forward_hook(
        lambda module, given, out: -out if isinstance(module, nn.Linear) else None
    )
    return images


@evil
def a_mode_of_functions(model, images, labels, threat, *, rng):
    class Mode(TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            return -out if getattr(func, "__name__", "") == "linear" else out

    Mode().__enter__()
    return images


@evil
def a_mode_of_dispatch(model, images, labels, threat, *, rng):
    class Mode(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            return -out if "addmm" in str(func) else out

    Mode().__enter__()
    return images


class Liar(torch.Tensor):
    """A tensor that says of itself that it lies nowhere outside."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        out = super().__torch_function__(func, types, args, kwargs or {})
        lies = getattr(func, "__name__", "") in ("__gt__", "gt", "__lt__", "lt", "__or__")
        return torch.zeros_like(out.as_subclass(torch.Tensor)) if lies else out


@evil
def a_tensor_that_lies(model, images, labels, threat, *, rng):
    return step(model, images, labels, threat, rng=rng).as_subclass(Liar)


@evil
def settings_of_torch(model, images, labels, threat, *, rng):
    torch.set_num_threads(2)
    torch.set_flush_denormal(True)
    torch.autograd.set_detect_anomaly(True)
    torch.set_float32_matmul_precision("medium")
    torch.backends.mkldnn.enabled = False
    torch.backends.cudnn.deterministic = True
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")
    torch.set_grad_enabled(False)
    torch.autocast("cpu", dtype=torch.bfloat16).__enter__()
    return images


@evil
def settings_of_the_process(model, images, labels, threat, *, rng):
    os.chdir("/")
    os.environ["OMP_NUM_THREADS"] = "77"
    os.umask(0o777)
    sys.stdout = None
    sys.setrecursionlimit(900)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    return images


@evil
def passes_that_were_never_made(model, images, labels, threat, *, rng):
    model.count = "many"
    model.looks = [("a", "b")]
    return images


@evil
def a_function_that_passes_for_one_of_torch(model, images, labels, threat, *, rng):
    usual = F.conv2d

    def conv2d(*args, **options):
        return usual(*args, **options) * -1

    conv2d._torchdynamo_orig_callable = usual
    conv2d.__wrapped__ = usual
    F.conv2d = conv2d
    return images


@evil
def a_constant_of_the_referee(model, images, labels, threat, *, rng):
    robustdup.threat.LINF_TOLERANCE = 1.0
    robustdup.evaluation.referee.VIOLATION_NAMES.clear()
    return step(model, images, labels, threat, rng=rng)


class OtherTorch:
    """What looks like torch, and says that nothing is as it was."""

    def __getattr__(self, name):
        return (lambda *args, **options: torch.zeros(())) if name in ("where", "equal") else getattr(torch, name)


@evil
def the_torch_that_the_referee_sees(model, images, labels, threat, *, rng):
    for module in (robustdup.evaluation.referee, robustdup.threat, robustdup.projections, F):
        if hasattr(module, "torch"):
            module.torch = OtherTorch()
    sys.modules["torch.nn.functional"] = OtherTorch()
    return step(model, images, labels, threat, rng=rng)


class Turned(nn.Module):
    """A base class that turns what every layer says."""

    def __call__(self, *args):
        return -self.forward(*args)


@evil
def the_bases_of_a_layer(model, images, labels, threat, *, rng):
    nn.Linear.__bases__ = (Turned,)
    return images


@evil
def what_a_function_encloses(model, images, labels, threat, *, rng):
    for function in (F.max_pool2d, ThreatModel.project, robustdup.evaluation.referee.judge):
        for cell in getattr(function, "__closure__", None) or ():
            cell.cell_contents = lambda *args, **options: images
    return step(model, images, labels, threat, rng=rng)


@evil
def a_constant_of_the_class_of_the_model(model, images, labels, threat, *, rng):
    Net.scale = Net.factor = -10.0
    for module in gc.get_objects():
        if type(module) in (Net, Uncopyable):
            vars(module).pop("factor", None)
    return images


@evil
def a_timer(model, images, labels, threat, *, rng):
    def ring(number, frame):
        F.conv2d = lambda images, *args, **options: images * 0

    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, 1e-3, 1e-3)
    return images


@evil
def the_garbage_collector(model, images, labels, threat, *, rng):
    def collect(phase, about):
        F.conv2d = lambda images, *args, **options: images * 0

    gc.callbacks.append(collect)
    gc.set_threshold(1)
    return images


@evil
def a_forked_process(model, images, labels, threat, *, rng):
    os.fork()  # the child goes on as if it were the run
    return images


@evil
def limits_of_the_process(model, images, labels, threat, *, rng):
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (0, resource.getrlimit(resource.RLIMIT_FSIZE)[1]))
    resource.setrlimit(resource.RLIMIT_NOFILE, (4, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))
    return images


@evil
def the_second_judge(model, images, labels, threat, *, rng):
    import subprocess

    sys.executable = "/bin/true"
    subprocess.run = lambda *args, **options: None
    os.replace = lambda *args: None
    return images


@evil
def the_threat_model_of_the_judge(model, images, labels, threat, *, rng):
    threat.eps._numerator = threat.eps._denominator
    for threat in gc.get_objects():
        if type(threat) is ThreatModel:
            object.__setattr__(threat, "eps", Fraction(1))
    return step(model, images, labels, threat, rng=rng)


@evil
def what_the_evaluation_runs_on(model, images, labels, threat, *, rng):
    for found in gc.get_objects():
        if type(found) is Context:
            found.draws, found.original.micro_batch = 0, 0
            found.original.forward = lambda images: torch.zeros(len(images), 2)
            found.original = Passes(nn.Flatten())
    return images


@evil
def defaults_in_place(model, images, labels, threat, *, rng):
    robustdup.evaluation.referee.judge.__kwdefaults__["draws"] = 0
    robustdup.evaluation.referee.judge_images.__kwdefaults__.update(draws=0)
    return images


@evil
def the_class_of_a_module(model, images, labels, threat, *, rng):
    class Other(type(torch)):
        where = property(lambda self: lambda *args: args[2])

    torch.__class__ = Other
    return images


@evil
def a_name_for_all_modules(model, images, labels, threat, *, rng):
    builtins.profile = lambda function: function  # as profilers and translators do
    return images


@evil
def bases_of_numbers(model, images, labels, threat, *, rng):
    numbers.Rational.__float__ = lambda self: 1.0  # which Fraction, and so each eps, has it from
    return step(model, images, labels, threat, rng=rng)


class LyingWeights(nn.Parameter):
    """Weights that say of themselves what they were, and turn what is computed with them."""

    @classmethod
    def __torch_function__(cls, func, types, args=(), kwargs=None):
        with torch._C.DisableTorchFunctionSubclass():
            out = func(*args, **(kwargs or {}))
        return -out if getattr(func, "__name__", "") == "linear" else out


@evil
def the_class_of_weights(model, images, labels, threat, *, rng):
    for module in gc.get_objects():
        if type(module) in (Net, Uncopyable):
            module.head.weight.__class__ = LyingWeights
            module.shift.__class__ = LyingWeights
    return images + 0.001


class Reader:
    """A descriptor of no usual kind, which stands before what an instance holds under its name."""

    def __get__(self, module, kind=None):
        return lambda images: torch.zeros(len(images), 2)

    def __set__(self, module, value):
        pass


@evil
def descriptors_of_classes(model, images, labels, threat, *, rng):
    Net.head = nn.Linear.weight = Reader()
    return images


@evil
def what_blocks_are_made_of(model, images, labels, threat, *, rng):
    def skip(self, *error):
        return True

    contextlib._GeneratorContextManager.__exit__.__code__ = skip.__code__
    F.conv2d = lambda images, *args, **options: images * 0
    return images


@evil
def members_of_an_enumeration(model, images, labels, threat, *, rng):
    Outcome.ROBUST._name_, Outcome.BROKEN._name_ = "BROKEN", "ROBUST"
    Outcome._value2member_map_[1] = Outcome.ROBUST
    return images


@evil
def a_method_of_a_stream(model, images, labels, threat, *, rng):
    sys.stdout.write = lambda text: 0
    return images


@evil
def transforms_that_were_not_left(model, images, labels, threat, *, rng):
    torch._C._functorch._grad_increment_nesting()
    torch._C._functorch._vmap_increment_nesting(3, "same")
    torch.autograd.forward_ad.enter_dual_level()
    return images


@evil
def kernels_of_torch(model, images, labels, threat, *, rng):
    robustdup.evaluation.referee.kept = kept = torch.library.Library("aten", "IMPL")
    with warnings.catch_warnings(action="ignore"):
        kept.impl("addmm", lambda bias, given, weight, **_: torch.zeros(len(given), weight.shape[1]), "CPU")
    return images


@evil
def how_values_are_sent_and_copied(model, images, labels, threat, *, rng):
    copyreg.pickle(torch.Tensor, lambda tensor: (torch.zeros, (tensor.shape,)))
    ForkingPickler.register(bool, lambda value: (bool, (1,)))
    copy._deepcopy_dispatch[nn.Parameter] = lambda weight, memo: nn.Parameter(weight.detach() * 0)
    return images


@evil
def what_reads_the_clock_or_warns(model, images, labels, threat, *, rng):
    def fails(*arguments, **options):
        raise ValueError("no")

    time.perf_counter = time.monotonic = warnings.warn = fails
    sys.modules["warnings"] = types.ModuleType("warnings")
    return images


@evil
def fields_of_classes(model, images, labels, threat, *, rng):
    fields = robustdup.evaluation.referee.Verdict.__dataclass_fields__
    fields["is_adv"].name = "margin"
    fields.pop("margin")
    return images


@evil
def by_what_records_are_read(model, images, labels, threat, *, rng):
    for name in ("__pydantic_validator__", "__pydantic_serializer__"):
        type.__setattr__(Accuracy, name, None)
    return images


@evil
def what_tells_instances(model, images, labels, threat, *, rng):
    type.__setattr__(type(nn.Parameter), "__instancecheck__", lambda kind, value: False)
    return images


@evil
def another_generator(model, images, labels, threat, *, rng):
    torch.default_generator = torch.random.default_generator = torch.Generator()
    return images


@evil
def monitors_of_python(model, images, labels, threat, *, rng):
    if hasattr(sys, "monitoring"):
        events = sys.monitoring.events
        sys.monitoring.use_tool_id(3, "evil")
        sys.monitoring.register_callback(3, events.CALL, lambda *_: setattr(F, "conv2d", F.max_pool2d))
        sys.monitoring.set_events(3, events.CALL)
    return images


@evil
def a_finalizer(model, images, labels, threat, *, rng):
    def act():
        F.conv2d = lambda images, *args, **options: images * 0

    weakref.finalize(images, act)
    return images


@evil
def contexts_of_numbers(model, images, labels, threat, *, rng):
    decimal.getcontext().prec = 1
    sys.set_int_max_str_digits(640)
    locale.setlocale(locale.LC_ALL, "C")
    warnings.simplefilter("error")
    codecs.register_error("strict", lambda error: ("", error.end))
    return images


def hooks():
    return [dict(value) for name, value in vars(nn.modules.module).items() if name.startswith("_global") and value]


@pytest.fixture(autouse=True)
def as_before():
    """Fail where a hostile attack leaves something behind for the next test, and for the user's next call."""

    def look():
        return (
            F.conv2d, F.relu.__code__, torch.where, torch.Tensor.argmax, len, any, Net.forward, nn.Linear.__call__,
            robustdup.evaluation.referee.judge_images, robustdup.evaluation.calls.judge, ThreatModel.project,
            torch.get_num_threads(), torch.is_anomaly_enabled(), torch.backends.mkldnn.enabled,
            torch.get_default_dtype(), torch.get_default_device(), torch.is_grad_enabled(),
            torch.autocast_increment_nesting(), torch.autocast_decrement_nesting(),
            torch.is_autocast_enabled("cpu"), Path.cwd(), os.environ.get("OMP_NUM_THREADS"),
            sys.stdout is None, sys.getrecursionlimit(),
            signal.getsignal(signal.SIGINT), hooks(), os._exit, nn.Linear.__bases__, sys.modules["torch.nn.functional"],
            robustdup.threat.LINF_TOLERANCE, robustdup.evaluation.referee.torch, sys.executable, subprocess.run,
            signal.getitimer(signal.ITIMER_REAL)[1], list(gc.callbacks), gc.get_threshold(), Net.scale, os.replace,
            signal.getsignal(signal.SIGALRM), resource.getrlimit(resource.RLIMIT_NOFILE), os.getpid(), type(torch),
            dict(robustdup.evaluation.referee.judge_images.__kwdefaults__), float(Fraction(1, 2)), hasattr(Net, "head"),
            contextlib._GeneratorContextManager.__exit__.__code__, Outcome.ROBUST.word, Outcome(1), sys.stdout.write,
            sorted(kernels()), set(copyreg.dispatch_table), set(ForkingPickler._extra_reducers), set(copy._deepcopy_dispatch),
            torch.default_generator, monitors(), words_and_numbers(), faulthandler.dump_traceback_later, os.kill,
            torch._C._functorch.maybe_current_level(), torch.autograd.forward_ad._current_level,
            list(robustdup.evaluation.referee.Verdict.__dataclass_fields__), Accuracy.__pydantic_validator__, time.monotonic,
            Accuracy.__pydantic_serializer__, isinstance(nn.Parameter(torch.zeros(1)), nn.Parameter), warnings.warn,
            dispatch_keys(),
        )  # fmt: skip

    before = look()
    yield
    assert look() == before


@pytest.fixture
def balls_of_other_tests():
    """Put back the threat models of the process that are not the run's: an attack reaches them, and the guard holds its own."""
    others = [(ball, dict(vars(ball))) for ball in gc.get_objects() if type(ball) is ThreatModel]
    yield
    for ball, fields in others:
        vars(ball).update(fields)


@pytest.mark.usefixtures("balls_of_other_tests")
@each_once(name=EVIL, kind=[Net, Uncopyable])
def test_no_attack_breaks_more_than_one_that_does_nothing(name, kind):
    model = kind()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    result = run(EVIL[name], model)
    assert int(result.broken.sum()) == 0
    assert int(result.undecided.sum()) == 0
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


@pytest.mark.parametrize("most", [2**20, 1], ids=["few values", "more than is compared of a whole run"])
@pytest.mark.parametrize("name", ["images", "labels"])
def test_an_attack_that_changes_what_is_judged_ends_the_run(name, most, monkeypatch):
    monkeypatch.setattr(held, "MOST_VALUES", most)

    def reaches(model, images, labels, threat, *, rng):
        frame = sys._getframe()
        while frame.f_code.co_name != "_attack_and_judge":
            frame = frame.f_back
        tensor = getattr(frame.f_locals["batch"], name)
        tensor.copy_(1 - tensor)
        return images

    with raises("model-changed", RunError, "images or labels"):
        run(reaches)


def test_an_honest_attack_in_a_ball_that_allows_it_breaks_all():
    """The other side: the guard takes nothing away, and what the hostile ones above return would break all there."""
    assert int(run(step, eps="0.3").broken.sum()) == 20


WEAKENING = {}


def weakening(function):
    """Keep an attack that would have those after it find less."""
    WEAKENING[function.__name__] = function
    return function


@weakening
def hooks_of_saved_tensors(model, images, labels, threat, *, rng):
    torch.autograd.graph.saved_tensors_hooks(lambda tensor: tensor * 0, lambda tensor: tensor).__enter__()
    return images


@weakening
def hooks_of_the_attack_copy(model, images, labels, threat, *, rng):
    for module in gc.get_objects():
        if isinstance(module, nn.Linear) and module.in_features == 16:
            module.register_full_backward_hook(lambda module, given, out: tuple(-part for part in given))
    return images


@weakening
def hooks_of_weights(model, images, labels, threat, *, rng):
    for module in gc.get_objects():
        if isinstance(module, nn.Linear) and module.in_features == 16:
            module.weight.requires_grad_(True).register_hook(lambda grad: grad * 0)
    return images


@weakening
def a_forward_of_the_attack_copy(model, images, labels, threat, *, rng):
    for module in gc.get_objects():
        if isinstance(module, nn.Linear) and module.in_features == 16:
            module.forward = lambda images: images[:, :2] * 0
    return images


@weakening
def kinds_of_kernels(model, images, labels, threat, *, rng):
    torch._C._dispatch_tls_set_dispatch_key_excluded("AutogradCPU", True)
    return images


def prepared(context):
    model = copy.deepcopy(context.original.model)
    return Prepared(model, folded=0, channels_last=False, compiled="off", precision="fp32", error=0.0, notes=())


@pytest.mark.parametrize("name", WEAKENING)
def test_no_attack_keeps_those_after_it_from_finding_what_there_is(name):
    from robustdup.attacks.pgd import pgd

    samples, context = setting(Net())
    context.attack_copy = prepared(context)
    native = PlannedStage(
        AttackSpec(name="pgd", function=pgd, norms=("Linf",), batching="pool", source="native"), {}, {"steps": 20}
    )
    alone = run_cascade([native], samples, ThreatModel("Linf", "0.12"), context)
    samples, context = setting(Net())
    context.attack_copy = prepared(context)
    after = run_cascade([stage(WEAKENING[name]), native], samples, ThreatModel("Linf", "0.12"), context)
    assert 5 < int(alone.broken.sum()) == int(after.broken.sum())


def test_libraries_may_be_imported_and_set_variables_of_their_own(monkeypatch):
    def honest(model, images, labels, threat, *, rng):
        os.environ["SOME_LIBRARY_WAS_HERE"] = "1"
        return images

    def dishonest(model, images, labels, threat, *, rng):
        os.environ["MKL_CBWR"] = "AVX2"
        return images

    assert run(honest).stages[0].calls[0].notes == []
    assert "SOME_LIBRARY_WAS_HERE" not in os.environ
    assert "the environment variable MKL_CBWR" in run(dishonest).stages[0].calls[0].notes[0]


def test_what_was_changed_is_said():
    calls = run(a_function_of_torch).stages[0].calls
    assert calls[0].notes == ["evil changed what the judge stands on, and it was put back: torch.nn.functional.conv2d."]
    assert run(step).stages[0].calls[0].notes == []


class Silent(BaseException):
    """An error that is no Exception and says nothing."""

    def __str__(self) -> str:
        raise RuntimeError("no text")


class Unclassed(Exception):
    """An error that ends the process where somebody asks what it is."""

    @property
    def __class__(self):
        raise SystemExit(0)


FAILURES = {
    "no class": Unclassed("what it says"),
    "what only the guard may say": Refused("the judge was changed"),
    "a lone surrogate": ValueError("no file \udcff.png"),
    "no text": Silent(),
    "no Exception": GeneratorExit(),
    "an exit": SystemExit(0),
    "an interrupt of its own": KeyboardInterrupt(),
    "200 KB": ValueError("A" * 200_000),
    "control characters": ValueError("\x1b[31mred\x1b]0;title\x07"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_the_run_goes_on_after_any_failure(name, tmp_path):
    def fails(model, images, labels, threat, *, rng):
        raise FAILURES[name]

    samples, context = setting(Net())
    result = run_cascade([stage(fails), stage(step)], samples, ThreatModel("Linf", "0.3"), context, folder=tmp_path)
    assert result.stages[0].outcome.tolist() == [Outcome.UNDECIDED] * 20
    assert int(result.broken.sum()) == 20
    for call in result.stages[0].calls:
        kind = type(FAILURES[name])
        assert (kind.__name__ if kind is not Refused else "only the guard") in call.error
        assert len(call.error) < 3000
        assert call.error.isprintable()
        call.error.encode()


@pytest.mark.parametrize("ending", [
    lambda: os._exit(0), lambda: os.abort(), lambda: os.execv("/bin/true", ["true"]),
    lambda: os.kill(os.getpid(), signal.SIGKILL), lambda: signal.raise_signal(signal.SIGABRT),
    lambda: signal.pthread_kill(threading.get_ident(), signal.SIGSEGV),
    lambda: faulthandler.dump_traceback_later(0.01, exit=True),
])  # fmt: skip
def test_an_attack_that_ends_the_process_fails_like_any_other(ending):
    def ends(model, images, labels, threat, *, rng):
        ending()

    result = run(ends)
    assert "would have ended the process" in result.stages[0].calls[0].error
    assert [len(s.calls) for s in result.stages] == [2, 2]


def test_a_real_interrupt_interrupts():
    def interrupted(model, images, labels, threat, *, rng):
        signal.raise_signal(signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        run(interrupted)


@pytest.mark.parametrize("returned", [None, "images", torch.zeros(3), torch.zeros(10, 1, 4, 4, dtype=torch.int64),
                                      torch.zeros(10, 1, 4, 4, device="meta"), torch.zeros(10, 1, 4, 4).to_sparse()])  # fmt: skip
def test_what_is_no_batch_of_images_is_a_failure(returned):
    result = run(lambda model, images, labels, threat, *, rng: returned)
    assert result.stages[0].outcome.tolist() == [Outcome.UNDECIDED] * 20
    assert int(result.broken.sum()) == 0


def test_unchanged_images_that_come_back_as_broken_end_the_run():
    """What no guard sees, here a caller that stands for a worker whose judge was changed."""
    samples, context = setting(Net())

    def caller(works, tick):
        from robustdup.evaluation.calls import make_call

        for work in works:
            call = make_call(work, [stage(lambda model, images, *_, rng: images)], context)
            call.verdict.is_adv.fill_(True)
            yield call

    with raises("model-changed", RunError, "unchanged images"):
        run_cascade([stage(step)], samples, ThreatModel("Linf", EPS), context, caller=caller)


def test_what_cannot_be_put_back_ends_the_run(monkeypatch):
    from robustdup.attacks.watched_code import WatchedCode

    def fails(self):
        raise TypeError("cannot set it")

    monkeypatch.setattr(WatchedCode, "put_back", fails)
    with pytest.raises(Refused):
        run(step)


def test_counts_of_passes_are_zero_where_an_attack_wrote_over_them():
    calls = run(passes_that_were_never_made).stages[0].calls
    assert calls[0].attack_passes == Count()
    assert calls[0].broken_after == []
