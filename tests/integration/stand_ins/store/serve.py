"""S3 by moto's server on port 8333, and on port 9333 the answer that SeaweedFS's health check asks for."""

from http.server import BaseHTTPRequestHandler, HTTPServer

from moto.server import ThreadedMotoServer


class Health(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


ThreadedMotoServer(ip_address="0.0.0.0", port=8333, verbose=False).start()
HTTPServer(("0.0.0.0", 9333), Health).serve_forever()
