"The engine in a whole model: made ready before the first text, used by all ways to speak, given up for memory."
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch._dynamo
from tiny import write_tiny_bundle

import metavoice.bundle.memory as memory
from metavoice.bundle.load import load_bundle
from metavoice.bundle.memory import pick_batch_size
from metavoice.core.errors import OptionError
from metavoice.generate.engine import prepare_engines
from metavoice.generate.sources import fewer_rows
from metavoice.generate.tts import TTS
from metavoice.serve.api import SpeechAPI
from metavoice.serve.config import ServerConfig

TEXTS = ["The dog slept.", "Where is the red book?", "The old man walked."]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_bundle(tmp_path_factory.mktemp("engine") / "tiny")


@pytest.fixture
def graphs(monkeypatch, tmp_path):
    "PyTorch's own operations run compiled steps; returns the list of their graphs."
    real, made = torch.compile, []

    def backend(graph, inputs):
        made.append(graph)
        return graph.forward

    monkeypatch.setattr(torch, "compile", lambda f, *, fullgraph: real(f, fullgraph=fullgraph, backend=backend))
    monkeypatch.setenv("METAVOICE_CACHE", str(tmp_path))
    torch._dynamo.reset()
    yield made
    torch._dynamo.reset()


def samples(audio):
    return audio.samples


@pytest.mark.slow
def test_nothing_is_compiled_after_make_ready(folder, graphs):
    tts, seen = TTS.from_pretrained(folder, "cpu", compile=True), []
    tts.make_ready(batch_size=3, on_progress=lambda done, sizes: seen.append((done, sizes)))
    before, engine = len(graphs), tts.bundle.first.engines.idle[0]
    assert seen and seen[-1][0] == seen[-1][1] == len(engine.ready) and before == 2
    plain = TTS.from_pretrained(folder, "cpu")
    for options in (dict(), dict(temperature=0.9, top_p=0.8), dict(top_k=5)):
        made, expected = (o.synthesise(TEXTS, seed=1, batch_size=3, **options) for o in (tts, plain))
        assert all(torch.equal(a.samples, b.samples) for a, b in zip(made, expected))
    streamed, expected = (torch.cat([*map(samples, o.stream(TEXTS[0], seed=2))]) for o in (tts, plain))
    assert torch.equal(streamed, expected) and len(graphs) == before
    assert tts.bundle.first.engines.idle == [engine]


@pytest.mark.slow
def test_a_server_compiles_before_it_is_ready(folder, graphs, tmp_path):
    config = ServerConfig(model=str(folder), device="cpu", compile=True, max_batch=2, groups=2, voices=tmp_path)
    api = SpeechAPI(config)
    try:
        api.load()
        before = len(graphs)
        assert api.status == "ok" and before >= 2 and all(o.ready for o in api.tts.bundle.first.engines.idle)

        def speak(n):
            segments = api.tts.segments(TEXTS[n % 3 :], next(iter(api.model_voices.values())), n)
            job = api._make_job(segments, api.options, None)
            api.speech_service.submit(job)
            return len(job.collect())

        with ThreadPoolExecutor(5) as pool:  # nothing is compiled for the first request, nor for nine others
            assert all(pool.map(speak, range(10))) and len(graphs) == before
    finally:
        api.close()


def test_a_cpu_compiles_only_if_asked(folder, graphs):
    tts = TTS.from_pretrained(folder, "cpu")
    tts.make_ready()
    first, layout = tts.bundle.first, tts.bundle.layout
    assert not graphs and first.engines is None and prepare_engines(first, 2, layout) is False


def test_refused_memory_frees_the_engines(folder, monkeypatch):
    bundle = load_bundle(folder, "cpu", compile=True)
    monkeypatch.setattr(memory, "free_memory", lambda device: 0.0)
    assert pick_batch_size(bundle, 2) == 1

    class Engine:
        nbytes = 10**12

    bundle.first.engines = type("Pool", (), dict(idle=[Engine()]))()
    assert pick_batch_size(bundle, 2) == 16, "the memory of an idle engine is there for the next one"
    assert fewer_rows(8, bundle) == 4 and bundle.first.engines is None


@pytest.fixture
def no_compiler(monkeypatch, tmp_path):
    real = torch.compile

    def backend(graph, inputs):
        raise RuntimeError("no compiler here")

    monkeypatch.setattr(torch, "compile", lambda f, *, fullgraph: real(f, fullgraph=fullgraph, backend=backend))
    monkeypatch.setenv("METAVOICE_CACHE", str(tmp_path))
    torch._dynamo.reset()
    yield
    torch._dynamo.reset()


def test_without_a_compiler_the_steps_run_one_by_one(folder, no_compiler, monkeypatch, caplog):
    "Unless the user has asked for compilation; it is tried once."
    expected = TTS.from_pretrained(folder, "cpu").synthesise(TEXTS[0], seed=1)
    tts = TTS.from_pretrained(folder, "cpu", compile=None)
    monkeypatch.setattr("metavoice.generate.engine.is_static", lambda model: True)
    monkeypatch.setattr("metavoice.generate.tts.is_static", lambda model: True)
    for _ in range(2):
        tts.make_ready(batch_size=2)
    assert caplog.text.count("decoding without compiled steps: can't compile here") == 1
    assert torch.equal(tts.synthesise(TEXTS[0], seed=1).samples, expected.samples)
    with pytest.raises(OptionError, match="use compile=False"):
        TTS.from_pretrained(folder, "cpu", compile=True).make_ready(batch_size=2)


@pytest.mark.slow
def test_the_progress_of_compilation(folder, graphs):
    "`synthesise` reports it; a stop there leaves nothing behind, and the next call compiles."
    tts, seen = TTS.from_pretrained(folder, "cpu", compile=True), []

    def on_progress(stage, done, of):
        seen.append(stage)
        if stop:
            raise KeyboardInterrupt

    stop = True
    with pytest.raises(KeyboardInterrupt):
        tts.synthesise(TEXTS[0], seed=1, batch_size=2, on_progress=on_progress)
    assert seen == ["compiling"] and not tts.bundle.first.engines.idle
    stop = False
    tts.synthesise(TEXTS[0], seed=1, batch_size=2, on_progress=on_progress)
    sizes = len(tts.bundle.first.engines.idle[0].ready)
    assert seen[1:sizes + 2] == ["compiling"] * sizes + ["first stage"]
