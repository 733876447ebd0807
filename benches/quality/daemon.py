"""A daemon of `kvshare serve` for as long as a script needs it."""

import contextlib
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request


@contextlib.contextmanager
def daemon(kvshare, model, mode, flags=()):
    """Serves `model` as `m` in `mode` on a free port of this machine; its address, once it is ready."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    command = [kvshare, "serve", "--model", model, "--port", str(port), "--kv-sharing", mode, "--served-model-name", "m", *flags]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        url = f"http://127.0.0.1:{port}"
        while True:
            with contextlib.suppress(OSError):  # refused, or 503 while the model is read
                urllib.request.urlopen(f"{url}/health/ready", timeout=2).close()
                break
            if process.poll() is not None:
                raise SystemExit("the daemon has ended")
            time.sleep(0.2)
        yield url
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()
