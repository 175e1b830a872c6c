#!/usr/bin/env python3
import web

urls = ("/(.*)", "Hello")


class Hello:
    def GET(self, name):
        return "web.py " + name


app = web.application(urls, globals())

if __name__ == "__main__":
    web.wsgi.runwsgi = lambda func, addr=None: web.wsgi.runfcgi(func, addr)
    app.run()
