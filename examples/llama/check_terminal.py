#!/usr/bin/env python3
# SPDX-License-Identifier: Apache-2.0
"""Test of conversations with the program llama in a terminal: what it answers, and how it takes Ctrl-C, Ctrl-D, lines that it cannot use, and
streams that are closed.

    check_terminal.py LLAMA FOLDER

The model is a small random one whose tokens are bytes, made in FOLDER, so that each answer can be held to one of --tokens, a run of its own.
Without pseudo-terminals the exit status is 77.
"""
import array
import os
import pathlib
import random
import re
import select
import signal
import subprocess
import sys
import time

try:
    import pty
    import termios
except ImportError as error:
    print(f"skipped: {error}")
    sys.exit(77)

sys.dont_write_bytecode = True
import convert

LLAMA, MODEL = [], ""
PATIENCE = 120  # seconds, on a machine that may be busy
BOS, FIRST_BYTE, SPACE, FIRST_SPECIAL = 1, 3, 259, 260
END = FIRST_BYTE + ord("q")
SPECIAL = [b"<|im_start|>", b"<|im_end|>", b"<start_of_turn>", b"<end_of_turn>", b"<|start_header_id|>", b"<|end_header_id|>",
           b"<|eot_id|>"]
VOCABULARY = FIRST_SPECIAL + len(SPECIAL)
# How conversations are written: before a message, after it, after an answer that ended by itself, after one that did not.
FORMS = {
    "chatml": (b"<|im_start|>user\n", b"<|im_end|>\n<|im_start|>assistant\n", b"\n", b"<|im_end|>\n"),
    "gemma": (b"<start_of_turn>user\n", b"<end_of_turn>\n<start_of_turn>model\n", b"\n", b"<end_of_turn>\n"),
    "llama3": (b"<|start_header_id|>user<|end_header_id|>\n\n", b"<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n", b"",
               b"<|eot_id|>"),
}
STATUS = rb"\n(stopped\n)?(\d+) of (\d+) tokens; \d+ and \d+ tokens/s\n> $"


def write_models(folder):
    """A file for each form of a conversation. Only tokens that are letters or the space are ever the likeliest; an answer ends at a q."""
    layers, dim, hidden, heads, kv_heads, width = 3, 64, 192, 4, 2, 16
    bits = random.Random(2)

    def numbers(rows, columns=1, start=None):
        most = (12 / columns) ** 0.5
        values = [bits.uniform(-most, most) for _ in range(rows * columns)] if start is None else [start] * rows
        return array.array("f", values)

    classifier = array.array("f", bytes(4 * VOCABULARY * dim))
    for token in tokens_of(b" abcdefghijklmnopqrstuvwxyz"):
        classifier[token * dim : (token + 1) * dim] = numbers(dim)
    tensors = {"token_embd.weight": ((VOCABULARY, dim), numbers(VOCABULARY, dim)), "output_norm.weight": ((dim,), numbers(dim, start=1.0)),
               "output.weight": ((VOCABULARY, dim), classifier)}
    for layer in range(layers):
        for name, rows, columns in [("attn_q", heads * width, dim), ("attn_k", kv_heads * width, dim), ("attn_v", kv_heads * width, dim),
                                    ("attn_output", dim, heads * width), ("ffn_gate", hidden, dim), ("ffn_up", hidden, dim),
                                    ("ffn_down", dim, hidden)]:
            tensors[f"blk.{layer}.{name}.weight"] = ((rows, columns), numbers(rows, columns))
        for name in ("attn_norm", "ffn_norm"):
            tensors[f"blk.{layer}.{name}.weight"] = ((dim,), numbers(dim, start=1.0))
    config = {
        "architecture": "llama", "dim": dim, "hidden_dim": hidden, "layers": layers, "query_heads": heads, "kv_heads": kv_heads,
        "head_dim": width, "vocabulary": VOCABULARY, "max_length": 1 << 20, "norm_epsilon": 1e-5, "attention_scale": width**-0.5,
        "embedding_scale": 1.0, "activation": "silu", "rope_pairs": "interleaved", "rope_dims": width, "qkv_bias": False, "qk_norm": False,
        "post_norms": False, "tied": False, **convert.layer_config(layers),
    }
    tokenizer = {
        "kind": "spm", "pre": "default",
        "tokens": ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "\u2581", *(name.decode() for name in SPECIAL)],
        "scores": [0] * VOCABULARY, "types": [2, 3, 3] + [6] * 256 + [1] + [3] * len(SPECIAL), "bos": BOS, "eos": [2, END],
        "add_bos": True, "add_space_prefix": False,
    }
    listed = [(name, shape, lambda values=values: values) for name, (shape, values) in tensors.items()]
    for form in FORMS:
        convert.write_safetensors(folder / f"bytes-{form}.safetensors", convert.Model({**config, "chat": form}, tokenizer, listed), "F32")


class Terminal:
    """The program in a pseudo-terminal of its own, which neither echoes nor changes what is printed, nor throws it away at Ctrl-C.

    held: the terminal takes nothing that is printed until a Ctrl-Q comes.
    """

    def __init__(self, *options, model=None, held=False):
        self.child, self.master = pty.fork()
        if self.child == 0:
            try:
                signal.signal(signal.SIGINT, signal.SIG_DFL)  # shells have it ignored by what they run in the background
                modes = termios.tcgetattr(0)
                modes[1] &= ~termios.OPOST
                modes[3] = modes[3] & ~termios.ECHO | termios.NOFLSH
                termios.tcsetattr(0, termios.TCSANOW, modes)
                if held:
                    os.read(0, 1)  # the end of the line that has the Ctrl-S in it
                os.execv(LLAMA, [LLAMA, "--model", model or MODEL, *map(str, options)])
            finally:
                os._exit(99)
        self.reads = []  # what has been read since the last line was sent
        if held:
            os.write(self.master, b"\x13\n")

    def text(self):
        return b"".join(self.reads)

    def read(self, until):
        """Reads until the regular expression matches or, if it is None, the program ends. Returns the match."""
        deadline = time.monotonic() + PATIENCE
        while True:
            found = re.search(until, self.text(), re.DOTALL) if until is not None else None
            if found:
                return found
            if not select.select([self.master], [], [], max(0, deadline - time.monotonic()))[0]:
                os.kill(self.child, signal.SIGKILL)
                raise AssertionError(f"no {until!r} in {PATIENCE} s, but {self.text()[-500:]!r}")
            try:
                got = os.read(self.master, 65536)
            except OSError:  # Linux's way of saying that nobody has the terminal open any more
                got = b""
            if not got:
                assert until is None, f"ended without {until!r}: {self.text()[-500:]!r}"
                return None
            self.reads.append(got)

    def send(self, data):
        self.reads = []
        os.write(self.master, data)

    def ask(self, line):
        """(the answer, tokens in the cache, whether it was stopped)"""
        self.send(line + b"\n")
        return self.answer()

    def answer(self):
        found = self.read(STATUS)
        return self.text()[: found.start()], int(found[2]), found[1] is not None

    def end(self, data):
        """The exit status after `data`."""
        self.send(data)
        self.read(None)
        os.close(self.master)
        return os.waitstatus_to_exitcode(os.waitpid(self.child, 0)[1])


def tokens_of(text):
    made = []
    for part in re.split(b"(" + b"|".join(map(re.escape, SPECIAL)) + b")", text):
        if part in SPECIAL:
            made.append(FIRST_SPECIAL + SPECIAL.index(part))
        else:
            made += [SPACE if byte == ord(" ") else byte + FIRST_BYTE for byte in part]
    return made


def alone(tokens, steps, *options):
    """What follows these tokens, by a run of its own."""
    done = subprocess.run([LLAMA, "--model", MODEL, "--tokens", ",".join(map(str, tokens)), "--steps", str(steps), *options],
                          stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    prompt = bytes(ord(" ") if token == SPACE else token - FIRST_BYTE for token in tokens if FIRST_BYTE <= token < FIRST_SPECIAL)
    assert done.stdout.startswith(prompt), done.stdout
    return done.stdout[len(prompt) : done.stdout.index(b"\n\n", len(prompt))]


def check_conversation():
    at = Terminal("--steps", 30, "--ignore-end", "--context", 2000)
    at.read(b"^> $")
    first, cached, stopped = at.ask(b"Once upon")
    assert first == alone([BOS, *tokens_of(b"Once upon")], 30, "--ignore-end") and len(first) == 30, first
    assert (cached, stopped) == (1 + 9 + 29, False), cached
    at.send(b"\n")  # an empty line says nothing
    at.read(b"^> $")
    second, cached, _ = at.ask(b" a time")
    assert second == alone([BOS, *tokens_of(b"Once upon" + first + b" a time")], 30, "--ignore-end"), second
    assert second != alone([BOS, *tokens_of(b" a time")], 30, "--ignore-end"), "what was said before makes no difference"
    assert cached == 1 + 9 + 30 + 7 + 29, cached
    # Bytes that are no UTF-8, a NUL among them, are bytes.
    third, _, _ = at.ask(b"caf\xc3 \xff\0\x80")
    said = b"Once upon" + first + b" a time" + second
    assert third == alone([BOS, *tokens_of(said + b"caf\xc3 \xff\0\x80")], 30, "--ignore-end"), third
    assert at.end(b"\4") == 0
    assert at.text() == b"\n", at.text()


def check_ends():
    """An answer ends where the model says so, and what is said next goes on from there."""
    at = Terminal("--steps", 300)
    at.read(b"> $")
    said, ended = b"", None
    for line in (b"Lily", b"Tom", b"They"):
        said += line
        answer, _, _ = at.ask(line)
        assert answer == alone([BOS, *tokens_of(said)], 300), answer
        assert b"q" not in answer
        if len(answer) < 300:
            ended = (said, len(answer))
        said += answer
    assert ended, "no answer ended"
    assert at.end(b"Lily\4\4") == 0 and re.match(rb"[a-z ]+\n", at.text()), at.text()  # a last line without its end

    said, steps = ended  # once more, with the end token as the last one, and as any other
    at = Terminal("--steps", steps + 1, "--ignore-end")
    at.read(b"> $")
    answer, _, _ = at.ask(said)
    assert answer.endswith(b"q"), answer
    assert at.ask(b"Tim")[0] == alone([BOS, *tokens_of(said + answer + b"Tim")], steps + 1, "--ignore-end")
    assert at.end(b"\4") == 0


def check_chat():
    ends = {3: set(), 300: set()}  # whether answers ended by themselves
    for form, (before, after, ended, unfinished) in FORMS.items():
        for steps in (3, 300):
            at = Terminal("--chat", "--steps", steps, model=MODEL.replace("chatml", form))
            at.read(b"> $")
            said = [BOS]
            for line in (b"Hello", b"And then?"):
                said += tokens_of(before + line + after)
                answer, _, _ = at.ask(line)
                assert answer == alone(said, steps), (form, answer)
                by_itself = len(answer) < steps
                ends[steps].add(by_itself)
                said += tokens_of(answer) + ([END] if by_itself else []) + tokens_of(ended if by_itself else unfinished)
            assert at.end(b"\4") == 0
    assert False in ends[3] and True in ends[300], ends


def check_interrupts():
    long = ("--steps", 100000, "--ignore-end", "--context", 110000, "--threads", 1, "--kv-type", "f16")
    at = Terminal(*long)
    at.read(b"> $")
    said = b""
    for line in (b"Once upon", b" a time"):
        said += line
        at.send(line + b"\n")
        while len(at.reads) < 5 or len(at.text()) < 50:  # tokens come as they are made
            at.read(b".{%d}" % (len(at.text()) + 1))
        os.write(at.master, b"\3")
        answer, cached, stopped = at.answer()
        assert stopped and 50 <= len(answer) < 100000, len(answer)
        assert answer[:40] == alone([BOS, *tokens_of(said)], 40, "--ignore-end", "--kv-type", "f16"), answer
        said += answer
        assert cached == len(said), (cached, len(said))  # with the begin token, without the last one
    assert at.end(b"half a line\3") == 130
    # Output that waits for a slow terminal is not lost, nor is it an error, when Ctrl-C comes.
    at = Terminal(*long)
    at.read(b"> $")
    at.send(b"Once upon\n")
    select.select([at.master], [], [], PATIENCE)  # the answer begins, and is not read
    time.sleep(0.3)
    os.write(at.master, b"\3")
    answer, cached, stopped = at.answer()
    assert stopped and cached == 1 + 9 + len(answer) - 1, (cached, len(answer))
    assert at.end(b"\4") == 0
    # While a prompt goes through: its rest goes with the next line.
    at = Terminal(*long[2:], "--steps", 20, "--chunk", 1)
    at.read(b"> $")
    at.send(b"a" * 4000 + b"\n")
    at.read(b"prompt: [0-9]+ of 4001 tokens")
    os.write(at.master, b"\3")
    answer, cached, stopped = at.answer()
    assert stopped and cached < 4001, cached
    answer, cached, stopped = at.ask(b"b")
    assert answer.split(b"\n")[-1] == alone([BOS, *tokens_of(b"a" * 4000 + b"b")], 20, "--ignore-end", "--kv-type", "f16"), answer[-100:]
    assert cached == 1 + 4000 + 1 + 19 and not stopped, cached
    assert at.end(b"\3") == 130
    # One prompt, without a conversation.
    at = Terminal(*long, "--prompt", "Once upon")
    at.read(b"Once upon[a-z ]{20}")
    assert at.end(b"\3") == 130 and b"\nstopped\n" in at.text(), at.text()[-200:]
    # What is computed after the text. Until then the program ends by itself.
    at = Terminal("--prompt", "Once upon", "--kv-heads", 1, "--steps", 5000, "--ignore-end")
    at.read(b"\ntime: ")
    assert at.end(b"\3") in (-signal.SIGINT, 130) and b"perplexity" not in at.text(), at.text()[-200:]
    at = Terminal("--tokens", BOS, "--kv-heads", 1, "--steps", 1, held=True)
    time.sleep(1)  # it waits for the terminal, with its only token
    os.write(at.master, b"\3")
    assert at.end(b"\x11") in (-signal.SIGINT, 130) and b"perplexity" not in at.text(), at.text()[-200:]


def check_long_lines():
    at = Terminal("--context", 100, "--steps", 20, "--ignore-end", "--chunk", 16)
    at.read(b"> $")
    first, _, _ = at.ask(b"Once upon")
    at.send(b"x" * 120 + b"\n")
    at.read(rb"^the line has 121 tokens; expected 1 to 99, in a context of 100\n> $")
    answer, cached, _ = at.ask(b" a time")  # the conversation is as it was
    assert answer == alone([BOS, *tokens_of(b"Once upon" + first + b" a time")], 20, "--ignore-end"), answer
    answer, cached, _ = at.ask(b"y" * 70)
    notice, *progress, answer = re.split(rb"[\n\r]", answer)
    assert notice == b"the context of 100 tokens is full; a new conversation begins", notice
    assert progress == [b"", *(b"prompt: %d of 71 tokens" % done for done in (16, 32, 48, 64, 71))], progress
    assert answer == alone([BOS, *tokens_of(b"y" * 70)], 20, "--ignore-end") and cached == 71 + 19, answer
    at.send(b"x" * 5000 + b"\n")  # the terminal drops what it has no room for
    at.read(rb"^the terminal cut the line after 4095 bytes, and it was not taken; --prompt-file has no limit\n> $")
    rest, cached, _ = at.ask(b"z")  # the context has room for 8 more
    assert rest == alone([BOS, *tokens_of(b"y" * 70 + answer + b"z")], 8, "--ignore-end") and cached == 99, rest
    assert at.end(b"\4") == 0
    # From a file or a pipe lines may have any length.
    done = subprocess.run([LLAMA, "--model", MODEL, "--context", "7000", "--steps", "2"], input=b"x" * 6000 + b"\n" + b"z", capture_output=True)
    assert done.returncode == 0 and re.findall(rb"(\d+) of 7000 tokens;", done.stderr) == [b"6002", b"6005"], done.stderr


def check_caches():
    """The same conversation, whatever it is kept in, also of tokens by chance; one that begins anew, too."""
    said = {}
    for cache, chunk, threads, seed in (("contiguous", 256, 1, "10"), ("paged", 1, 2, "010"), ("ring", 8, 3, "10")):
        for chance in ((), ("--temperature", "1", "--top-p", "0.9", "--seed", seed)):
            done = subprocess.run([LLAMA, "--model", MODEL, "--cache", cache, "--chunk", str(chunk), "--threads", str(threads), "--window", "16",
                                   "--context", "100", "--steps", "20", "--ignore-end", *chance],
                                  input=b"Once upon a time\n" + b"x" * 60 + b"\nthere was\nLily\n", capture_output=True, check=True)
            assert done.stderr.count(b"a new conversation begins") == 1, done.stderr
            said.setdefault(chance[:-1], []).append(done.stdout)
    for chance, texts in said.items():
        assert texts[0].count(b"\n") == 4 and texts == texts[:1] * 3, (chance, texts)
    first, second = (texts[0] for texts in said.values())
    assert first != second


def check_closed_streams():
    """A closed input is at its end, a closed output is an error; neither is the file that the program opens next."""
    prompt = ("--prompt", "Lily")
    for closed, options, expected in (("<&-", (), 0), ("<&-", prompt, 0), (">&-", prompt, 2), ("<&- 2>&-", (), 0), ("<&- >&- 2>&-", prompt, 2)):
        done = subprocess.run(["sh", "-c", f'exec "$@" {closed}', "sh", LLAMA, "--model", MODEL, "--steps", "3", *options],
                              capture_output=True, timeout=PATIENCE)
        assert done.returncode == expected, (closed, done)


def main():
    global LLAMA, MODEL
    folder = pathlib.Path(sys.argv[2])
    folder.mkdir(parents=True, exist_ok=True)
    LLAMA, MODEL = sys.argv[1], str(folder / "bytes-chatml.safetensors")
    write_models(folder)
    try:
        for end in pty.openpty():
            os.close(end)
    except OSError as error:
        print(f"skipped: no pseudo-terminal: {error}")
        sys.exit(77)
    for check in (check_conversation, check_ends, check_chat, check_interrupts, check_long_lines, check_caches, check_closed_streams):
        start = time.monotonic()
        check()
        print(f"{check.__name__}: as expected, {time.monotonic() - start:.1f} s")


if __name__ == "__main__":
    main()
