"""Run llama.cpp's own server, which the package `xllamacpp` carries, for `serving.py`.

python bench/serving_llama_cpp.py model.gguf --port 8123 --threads 2 --slots 32
"""

from __future__ import annotations

import argparse
import signal
import threading


def main() -> None:
    """Serve a GGUF file until a signal comes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--port", type=int, default=8123)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--slots", type=int, default=32)
    parser.add_argument("--context", type=int, default=256, help="tokens of each slot")
    args = parser.parse_args()
    import xllamacpp

    params = xllamacpp.CommonParams()
    params.model.path = args.model
    params.port = args.port
    params.cpuparams.n_threads = params.cpuparams_batch.n_threads = args.threads
    params.n_parallel = args.slots
    params.n_ctx = args.slots * args.context
    params.warmup = True
    server = xllamacpp.Server(params)
    print(server.listening_address, flush=True)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    stop.wait()


if __name__ == "__main__":
    main()
