"""main.py for the servers that have no option to trust a proxy: wrapped in a helper that does it."""

from granian.utils.proxies import wrap_asgi_with_proxy_headers
from hypercorn.middleware import ProxyFixMiddleware
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from main import app

hypercorn = ProxyFixMiddleware(app)
granian = wrap_asgi_with_proxy_headers(app, trusted_hosts="*")
gunicorn = ProxyHeadersMiddleware(app, trusted_hosts="*")
