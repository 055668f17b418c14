"""Random texts and mutated audio files through library, command and server: no traceback, no hang, no silent loss.

As a program: python tests/fuzz.py --texts 5000 --files 500 --seed 1 [--ways library command server]
It prints the figures as JSON, and each fault with a short input that shows it, and ends with 1 if there are faults.
"""

import argparse
import asyncio
import contextlib
import faulthandler
import io
import json
import logging
import os
import re
import sys
import tempfile
import time
import traceback
import unicodedata
from collections import Counter
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from unittest import mock

import media
import torch
from helpers import slowness
from scribble import Scribbler
from tiny import write_tiny_bundle

from metavoice.cli import commands
from metavoice.core.errors import AudioError, TextError
from metavoice.generate.segments import encode_segment, max_segment_tokens, prepare_texts, split_prepared
from metavoice.generate.tts import TTS
from metavoice.text.duration import plausible_seconds
from metavoice.text.markup import read_blocks
from metavoice.text.spoken import TextOptions, say_block
from metavoice.text.symbols import EMOJI

SOUNDS = re.compile("[LN].|S[mco]").fullmatch  # categories of characters that are said or named
MOST_SECONDS = 1.0  # of processor time to turn a text into segments
HANG = 300  # seconds after which one input counts as a hang: the program ends with all stacks
QUIET = set("¹²³⁰⁴⁵⁶⁷⁸⁹⁺⁻ⁿ<>|~^⁄→←↑↓⇒⇐⟶∗∙−＜＞｜～￫￩￪￬¦®℠™■□▪○●◦➔➜➡￤￭￮ªʼˈͺﾞﾟ")
# numbers of notes, bullets, arrows and marks without sound; some of them are said beside others


class Report:
    "Outcomes, the slowest input of each way, and faults."

    def __init__(self):
        self.outcomes, self.slowest, self.faults, self.notes = Counter(), {}, [], {}
        self.inputs, self.shown = 0, time.perf_counter()

    @contextlib.contextmanager
    def trying(self, way, n, value):
        "Time one input; an exception is a fault."
        faulthandler.dump_traceback_later(HANG, exit=True)
        start = time.perf_counter()
        try:
            yield
        except Exception as e:
            at = traceback.extract_tb(e.__traceback__)[-1]
            self.fault(way, n, f"{type(e).__name__}: {e}"[:300] + f" ({Path(at.filename).name}:{at.lineno})", value)
        finally:
            faulthandler.cancel_dump_traceback_later()
            self.took(way, n, time.perf_counter() - start, value)

    def took(self, way, n, seconds, value):
        "Remember the slowest input, and log how far it is once a minute."
        self.inputs += 1
        if time.perf_counter() - self.shown > 60:
            self.shown = time.perf_counter()
            logging.getLogger("fuzz").warning("%d inputs: %s", self.inputs, dict(self.outcomes))
        if seconds > self.slowest.get(way, (0,))[0]:
            self.slowest[way] = round(seconds, 2), n, repr(value)[:80]

    def fault(self, way, n, problem, value):
        "Add a fault."
        self.outcomes[f"{way}: fault"] += 1
        self.faults.append(dict(way=way, n=n, problem=problem, input=repr(value)[:2500]))
        logging.getLogger("fuzz").warning(json.dumps(self.faults[-1]))

    def figures(self):
        "All but the faults."
        return dict(outcomes=dict(sorted(self.outcomes.items())), slowest=self.slowest, notes=self.notes)


class Warnings(logging.Handler):
    "The messages that metavoice logs."

    def __init__(self):
        super().__init__(logging.WARNING)
        self.messages = []

    def emit(self, record):
        self.messages.append(record.getMessage())

    @contextlib.contextmanager
    def watched(self):
        "Collect messages in place of their usual handlers."
        own = logging.getLogger("metavoice")
        own.addHandler(self)
        propagate, own.propagate = own.propagate, False
        try:
            yield self
        finally:
            own.removeHandler(self)
            own.propagate = propagate


# what has to hold of a text


def is_one_line(message):
    "Whether a message is one line that a terminal shows as it is."
    return bool(message.strip()) and message.isprintable()


@lru_cache(100_000)
def said_alone(tokeniser, character, spoken):
    "What is said for a character by itself, and what is left out of it."
    options = TextOptions(spoken=spoken)
    return tokeniser.fit(say_block(character, options) if spoken else character)


class HashableTokeniser:
    "A tokeniser that can be a key of a cache."

    def __init__(self, tokeniser):
        self.fit = tokeniser.fit


def lost_characters(text, prepared, tokeniser):
    "Letters, digits and symbols of a text that are neither said nor named, markup and emoji aside."
    spoken, left_out, lost = text.options.get("spoken", True), "".join(prepared.left_out), []
    named = set(left_out + unicodedata.normalize("NFKD", left_out))
    visible = EMOJI.sub("", unicodedata.normalize("NFC", "".join(block.text for block in read_blocks(text.text))))
    for character in sorted({c for c in visible if SOUNDS(unicodedata.category(c))} - QUIET - named):
        said, unknown = said_alone(tokeniser, character, spoken)
        if named.intersection(unicodedata.normalize("NFKD", "".join(unknown))) or any(c.isalnum() for c in said):
            continue
        lost.append(character)
    return lost


def missing_words(text, said):
    "Words that aren't said in their order, or have nothing said between them where a figure is written."
    heard, at, missing = re.findall("[a-z]+", said.lower()), 0, []
    for n, word in enumerate(text.words):
        if word not in heard[at:]:
            missing.append(word)
            continue
        found = heard.index(word, at)
        if n and text.has_figures and found == at and text.options.get("spoken", True):
            missing.append(f"the figure before {word}")
        at = found + 1
    return missing


def find_problem(text, bundle, tokeniser):
    "Return what is wrong with how a text is prepared and split, or None; the outcome; the segments."
    options, before = TextOptions(**text.options), time.thread_time()
    try:
        prepared = prepare_texts(bundle, [text.text], options)[0]
        parts = split_prepared(bundle, prepared)
    except TextError as e:
        problem = None if is_one_line(str(e)) else f"its error isn't a line: {e!r}"
        strict = options.strict and "can't be said" in str(e)
        if not problem and text.words and not strict:
            problem = f"a text with words is refused: {e}"
        kind = next((k for k in ("empty", "nothing to say", "pause", "can't be said") if k in str(e)), "other")
        return problem, f"refused, {kind}", []
    seconds, limit = time.thread_time() - before, max_segment_tokens(bundle)
    letters = [c for c in prepared.text if c.isalnum()]
    problems = dict(
        slow=f"{seconds:.2f} s" if seconds > MOST_SECONDS * slowness() else "",
        outside=sorted(set(prepared.text) - set(bundle.tokeniser.known) - {"\n"}),
        unsaid=missing_words(text, prepared.text),
        unnamed=lost_characters(text, prepared, tokeniser),
        split=letters != [c for part, _ in parts for c in part if c.isalnum()],
        long=[part for part, _ in parts if len(encode_segment(bundle, part)) > limit],
        silent=[part for part, _ in parts if not any(c.isalnum() for c in part)],
        pauses=[p for _, p in parts if not 0 <= p <= 10] or parts[-1][1] != 0,
        changing=prepare_texts(bundle, [text.text], options)[0] != prepared,
    )
    found = {k: v for k, v in problems.items() if v}
    return str(found) if found else None, "said, some left out" if prepared.left_out else "said", parts


def shorten(text, is_bad, seconds=10):
    "Remove parts of a string while it stays bad, for some seconds."
    size, end = max(1, len(text) // 2), time.perf_counter() + seconds
    while size:
        at = 0
        while at < len(text) and time.perf_counter() < end:
            shorter = text[:at] + text[at + size :]
            if shorter and is_bad(shorter):
                text = shorter
            else:
                at += size
        size //= 2
    return text


def shorten_text(text, bundle, tokeniser, problem):
    "Return a short string with the same kind of problem."
    kind = problem.split(":")[0]
    if "slow" in kind:
        return text.text

    def is_bad(shorter):
        kept = [w for w in text.words if w in shorter.lower()]
        try:
            found = find_problem(replace(text, text=shorter, words=kept), bundle, tokeniser)[0]
        except Exception as e:
            found = type(e).__name__
        return bool(found) and found.split(":")[0] == kind

    return shorten(text.text, is_bad)


# library


def fuzz_library_texts(texts, tts, report, every=1, stream_every=4):
    "Prepare all texts; speak every so many whole, of these every so many streamed too."
    tokeniser = HashableTokeniser(tts.bundle.tokeniser)
    for n, text in enumerate(texts):
        parts = problem = None
        with report.trying("library", n, (text.text, text.options)):
            problem, outcome, parts = find_problem(text, tts.bundle, tokeniser)
            report.outcomes[f"library: {outcome}"] += 1
        if problem:
            short = shorten_text(text, tts.bundle, tokeniser, problem)
            report.fault("library", n, problem, (text.kind, text.options, short))
        if parts and n % every == 0:
            with report.trying("library, whole", n, text.text):
                options = dict(seed=n, denoise=False, **text.options)
                audio = tts.synthesise(text.text, **options)
                check_sound(audio.samples, audio.sample_rate, parts)
                report.outcomes["library: spoken whole"] += 1
        if parts and n % (every * stream_every) == 0:
            with report.trying("library, streamed", n, text.text):
                chunks = [chunk.samples for chunk in tts.stream(text.text, **options)]
                check_sound(torch.cat(chunks), audio.sample_rate, parts)
                assert torch.equal(tts.synthesise(text.text, **options).samples, audio.samples), "another sound"
                report.outcomes["library: streamed"] += 1


def check_sound(samples, rate, parts):
    "Check that all segments are in a sound."
    least = sum(0.9 * plausible_seconds(part)[0] for part, _ in parts)
    assert samples.isfinite().all() and len(samples) / rate >= least, f"{len(samples) / rate} s; at least {least}"


def fuzz_library_files(files, tts, report, warnings):
    "Make voices from files."
    short = report.notes.setdefault("shorter without a warning", Counter())
    for n, (name, mutation, data) in enumerate(files):
        warnings.messages.clear()
        with report.trying("library, file", n, (name, mutation, len(data))):
            try:
                voice = tts.voice(data)
                assert voice.embedding.isfinite().all() and 0.99 < voice.embedding.norm() < 1.01
                report.outcomes["library: voice" + " with a warning" * bool(warnings.messages)] += 1
                if voice.seconds < 1.8 and not any("read" in m for m in warnings.messages):
                    short[f"{name} {mutation}"] += 1
            except AudioError as e:
                assert is_one_line(str(e)), e
                report.outcomes["library: file refused"] += 1
            assert all(map(is_one_line, warnings.messages)), warnings.messages


# command


@contextlib.contextmanager
def native_errors():
    "Give a file with what C libraries write to standard error."
    sys.stderr.flush()
    real = os.dup(2)
    with tempfile.TemporaryFile() as file:
        os.dup2(file.fileno(), 2)
        try:
            yield file
        finally:
            os.dup2(real, 2)
            os.close(real)


def call_command(argv, stdin=b""):
    "Run a command in this process; return its exit code and what it wrote, that of C libraries aside."
    out, err, real = io.StringIO(), io.StringIO(), sys.stdin
    sys.stdin = io.TextIOWrapper(io.BytesIO(stdin))
    try:
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = commands.main([str(a) for a in argv])
    finally:
        sys.stdin = real
    return code, out.getvalue(), err.getvalue()


def check_command(argv, output, stdin=b""):
    "Run a command and check its exit code, its lines and its file; return the outcome."
    Path(output).unlink(missing_ok=True)
    code, out, err = call_command([*argv, "-q", "-o", output], stdin)
    lines = err.split("\n")[:-1]
    assert code in (0, 2) and not out and (not err or err.endswith("\n")), (code, out, err[-500:])
    assert all(line.startswith("metavoice: ") and is_one_line(line) for line in lines), err[-500:]
    assert Path(output).exists() == (code == 0), f"code {code}, but the file {Path(output).exists()}"
    assert code == 0 or lines and sum("is left out" in line for line in lines) < 2, err[-500:]
    assert "Traceback" not in err and "Warning" not in err, err[-500:]
    if code == 0:
        assert Path(output).stat().st_size > 200
    return {0: "spoken", 2: "refused"}[code] + (" with a warning" if len(lines) > (code == 2) else "")


make_parser_once = lru_cache(commands.make_parser)


@contextlib.contextmanager
def kept(tts):
    "Let commands use a parser and a model that are there already, as both take longer than a short text."
    with mock.patch.object(commands, "make_parser", make_parser_once):
        with mock.patch.object(TTS, "from_pretrained", lambda *args, **options: tts):
            yield


def fuzz_command_texts(texts, tts, bundle, folder, report):
    "Speak texts as arguments, files and standard input; every tenth command loads the model."
    output, written = folder / "a.wav", folder / "text.txt"
    flags = dict(spoken="--as-written", emoji="--emoji", strict="--strict")
    for n, text in enumerate(texts):
        argv = ["synthesise", "--model", bundle, "--no-denoise", "--seed", n]
        argv += [part for k, v in text.options.items() for part in ([flags[k]] if k in flags else [f"--{k}", v])]
        argv += ["--stream"] * (n % 8 == 7)
        written.write_bytes(text.text.encode())
        source = {0: ["-"], 1: [f"@{written}"]}.get(n % 4, ["--voice=tiny", text.text])
        if n % 4 > 1 and text.text.startswith(("-", "@")):
            source = [" " + text.text]
        with report.trying("command", n, (text.text, argv[7:])), kept(tts) if n % 10 else contextlib.nullcontext():
            report.outcomes[f"command: {check_command([*argv, *source], output, text.text.encode())}"] += 1


def fuzz_command_files(files, bundle, folder, report):
    "Speak in the voices of files, whose names have any ending."
    endings = (".wav", ".mp3", ".ogg", ".m4a", "", ".txt", ".safetensors", ".WAV")
    for n, (name, mutation, data) in enumerate(files):
        path = folder / f"voice{endings[n % len(endings)]}"
        path.write_bytes(data)
        argv = ["synthesise", "Hello there.", "--model", bundle, "--no-denoise", "--seed", n, "--voice", path]
        with report.trying("command, file", n, (name, mutation, path.name, len(data))):
            with native_errors() as native:
                outcome = check_command(argv, folder / "a.wav")
                report.outcomes[f"command: file, {outcome}"] += 1
                native.seek(0)
                if line := native.read().decode(errors="replace").split("\n")[0]:
                    report.notes.setdefault("lines of C libraries", Counter())[f"{name}: {line[:30]}"] += 1
        path.unlink()


# server


async def ask(http, report, way, n, value, path, **content):
    "Send a request, and check that it succeeds or is refused as JSON."
    start = time.perf_counter()
    try:
        response = await asyncio.wait_for(http.post(path, **content), HANG)
    except Exception as e:
        report.fault(way, n, f"{type(e).__name__}: {e}"[:300], value)
        return None
    report.took(way, n, time.perf_counter() - start, value)
    status, good = response.status_code, response.status_code in (200, 201) and len(response.content) > 50
    if 400 <= status < 500:
        error = response.json()["error"]
        good = is_one_line(error["message"]) and status != 429
    report.outcomes[f"{way}: {status}"] += 1
    if not good:
        report.fault(way, n, f"status {status}: {response.content[:200]}", value)
    return response


async def watch_health(http, report):
    "Ask for the server's health again and again."
    while True:
        start = time.perf_counter()
        response = await http.get("/health")
        seconds = time.perf_counter() - start
        report.took("server, health", report.outcomes["server: health"], seconds, "")
        report.outcomes["server: health"] += 1
        if response.status_code != 200 or response.json()["status"] != "ok":
            report.fault("server", 0, f"health {response.status_code}", response.content)
        await asyncio.sleep(0.05)


async def fuzz_server_texts(texts, http, report, together=6):
    "Speak texts, some at a time: as JSON, of which every third has a seed, and as forms."
    queue = iter(enumerate(texts))

    async def client():
        for n, text in queue:
            if n % 8 == 7:
                await ask(http, report, "server, form", n, text.text, "/tts", data=dict(text=text.text))
                continue
            format = ("pcm", "wav", "mp3", "opus", "flac")[n % 5]
            body = dict(model="tiny", input=text.text, response_format=format, **text.options)
            body |= dict(seed=n) if n % 3 == 0 else {}
            body |= dict(stream_format="sse") if n % 11 == 0 else {}
            response = await ask(http, report, "server", n, (text.text, text.options), "/v1/audio/speech", json=body)
            if response is not None and b'"error"' in response.content[-2000:] and response.status_code == 200:
                report.fault("server", n, str(response.content[-500:]), text.text)

    await asyncio.gather(*(client() for _ in range(together)))


async def fuzz_server_files(files, http, report, together=4):
    "Register voices from files, delete them, and speak in the voices of uploads."
    queue = iter(enumerate(files))

    async def client():
        for n, (name, mutation, data) in queue:
            about, upload = (name, mutation, len(data)), (f"a.{name}", data)
            if n % 4 == 3:
                content = dict(data=dict(text="Hello there."), files=dict(audiodata=upload))
                await ask(http, report, "server, form with a file", n, about, "/tts", **content)
                continue
            content = dict(data=dict(name=f"fuzz {n}"), files=dict(file=upload))
            response = await ask(http, report, "server, voice", n, about, "/v1/voices", **content)
            if response is not None and response.status_code == 201:
                body = dict(model="tiny", input="Hello.", voice=f"fuzz {n}")
                await ask(http, report, "server, speech in a voice", n, about, "/v1/audio/speech", json=body)
                await http.delete(f"/v1/voices/{response.json()['id']}")

    await asyncio.gather(*(client() for _ in range(together)))


def fuzz_server(texts, files, tts, folder, report):
    "Send texts and files to the server's app, in this process."
    import httpx

    from metavoice.serve.api import SpeechAPI
    from metavoice.serve.app import make_app
    from metavoice.serve.config import ServerConfig

    service = SpeechAPI(ServerConfig(voices=str(folder / "voices"), denoise=False, threads=1), tts)
    service.load()

    async def run():
        transport = httpx.ASGITransport(make_app(service))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost", timeout=HANG) as http:
            watch = asyncio.create_task(watch_health(http, report))
            await fuzz_server_texts(texts, http, report)
            await fuzz_server_files(files, http, report)
            watch.cancel()

    try:
        asyncio.run(run())
    finally:
        service.close()


WAYS = ("library", "command", "server")


def fuzz(texts, files, seed=1, ways=WAYS, every=1, with_ffmpeg=True, longest=2000):
    "Send random texts and mutated files all the ways, and return a `Report`."
    report, warnings = Report(), Warnings()
    mutants = list(media.mutants(files, seed, media.make_files(with_ffmpeg)))
    texts = list(Scribbler(seed).texts(texts, longest))
    report.notes["characters"] = sum(len(text.text) for text in texts)
    with tempfile.TemporaryDirectory() as folder, warnings.watched():
        folder = Path(folder)
        bundle = write_tiny_bundle(folder / "tiny")
        tts = TTS.from_pretrained(bundle, device="cpu")
        if "library" in ways:
            fuzz_library_texts(texts, tts, report, every)
            fuzz_library_files(mutants, tts, report, warnings)
        if "command" in ways:
            fuzz_command_texts(texts, tts, bundle, folder, report)
            fuzz_command_files(mutants, bundle, folder, report)
        if "server" in ways:
            fuzz_server(texts, mutants, tts, folder, report)
    return report


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--texts", type=int, default=5000)
    parser.add_argument("--files", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--every", type=int, default=1, help="the library speaks one in so many texts")
    parser.add_argument("--ways", nargs="*", choices=WAYS, default=WAYS)
    args = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    torch.set_num_threads(1)
    logging.getLogger("fuzz").addHandler(logging.StreamHandler())
    report = fuzz(args.texts, args.files, args.seed, args.ways, args.every)
    print(json.dumps(report.figures(), indent=1, default=str))
    for fault in report.faults:
        print(json.dumps(fault, ensure_ascii=True))
    return 1 if report.faults else 0


if __name__ == "__main__":
    sys.exit(main())
