"""What engineers who care build by hand: nginx that asks Redis in Lua where a link leads, and counts there."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from asyncio.subprocess import Process
from pathlib import Path
from urllib.parse import urlsplit

from deploy.run.children import CannotStart
from loadtests.bench.redirects import LOCATION
from loadtests.bench.wrk import CODES
from schemas.redis import done, publishing

PACKAGES = "nginx libnginx-mod-http-lua lua-nginx-redis"
_CONF = """
load_module modules/ndk_http_module.so;
load_module modules/ngx_http_lua_module.so;
daemon off;
master_process off;
worker_processes 1;
pid {folder}/pid;
error_log {folder}/error.log;
events {{ worker_connections 4096; }}
http {{
  access_log off;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  keepalive_requests 1000000000;
  init_by_lua_block {{ local found, driver = pcall(require, "resty.redis")
                       redis = found and driver or require("nginx.redis") }}
  server {{
    listen 127.0.0.1:{port} backlog=4096;
    location = /live {{ default_type application/json; return 200 '{{"live": true}}'; }}
    location /c/ {{ content_by_lua_block {{
      local one = redis:new()
      if not one:connect("127.0.0.1", {redis_port}) then return ngx.exit(503) end
      if one:get_reused_times() == 0 then one:auth("{password}") end
      local code = ngx.var.uri:sub(4)
      local to = one:get("bench:to:" .. code)
      if type(to) ~= "string" then return ngx.exit(404) end
      one:incr("bench:clicks:" .. code)
      one:set_keepalive(60000, 512)
      ngx.status = 302
      ngx.header["Location"] = to
      ngx.header["Content-Length"] = 0
      return ngx.exit(ngx.OK)
    }} }}
  }}
}}
"""


async def start(folder: Path, port: int, redis_url: str, name: str) -> Process:
    """One process, on links `<name>-1` and so on. Raises CannotStart where nginx or what it needs is missing."""
    if shutil.which("nginx") is None:
        raise CannotStart(f"nginx is not installed (Debian: {PACKAGES})")
    folder.mkdir()
    redis = urlsplit(redis_url)
    conf = folder / "nginx.conf"
    conf.write_text(_CONF.format(folder=folder, port=port, redis_port=redis.port, password=redis.password))
    command = ["nginx", "-c", str(conf), "-e", str(folder / "error.log")]
    checked = await asyncio.to_thread(subprocess.run, [*command, "-t"], capture_output=True, text=True, check=False)
    if checked.returncode != 0:
        raise CannotStart(f"nginx cannot do it (Debian: {PACKAGES}): {checked.stderr.strip().splitlines()[0]}")
    async with publishing(redis_url) as client:
        await done(client.mset({f"bench:to:{name}-{n}": LOCATION for n in range(1, CODES + 1)}))
    return await asyncio.create_subprocess_exec(*command)
