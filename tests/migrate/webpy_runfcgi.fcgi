import web
urls = ("/(.*)", "Hello")
class Hello:
    def GET(self, name): return "web.py " + name
web.wsgi.runfcgi(web.application(urls, globals(), autoreload=False).wsgifunc(), ("127.0.0.1", @PORT@))
