#!/usr/bin/env python3
"""A hook for spec.traffic.hook: nginx's split_clients, from a file that its configuration includes.

    split_clients "$remote_addr$remote_port" $colour { include shares.conf; * blue; }
    ... proxy_pass http://$colour;

GET tells what the file holds, PUT writes it and has nginx reload, ?dryRun=true does neither. A hook of your own asks its
load balancer instead of a file; it needs TLS and a token unless nobody else reaches it.

usage: traffic-hook.py LISTEN_PORT SHARES_FILE [RELOAD_COMMAND...]
"""
import json, os, re, subprocess, sys
from http.server import BaseHTTPRequestHandler, HTTPServer

PORT, FILE, RELOAD = int(sys.argv[1]), sys.argv[2], sys.argv[3:]


def read():
    with open(FILE) as file:
        found = re.search(r"^(\d+)% green;$", file.read(), re.M)
    green = int(found.group(1)) if found else 0
    return {"blue": 100 - green, "green": green}


def write(weights):
    with open(FILE + ".new", "w") as file:
        # split_clients refuses 0 %.
        file.write(f"{weights['green']}% green;\n" if weights["green"] else "")
    os.replace(FILE + ".new", FILE)
    if RELOAD:
        subprocess.run(RELOAD, check=True)


class Hook(BaseHTTPRequestHandler):
    def do_GET(self):
        self.answer(200, read())

    def do_PUT(self):
        weights = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if not (isinstance(weights.get("green"), int) and weights.get("blue") == 100 - weights["green"]):
            return self.answer(400, {"error": "blue and green must be 100 together"})
        if not self.path.endswith("?dryRun=true") and weights != read():
            write(weights)
        self.answer(200, weights)

    def answer(self, status, body):
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)


HTTPServer(("127.0.0.1", PORT), Hook).serve_forever()
