"""A Django site: the admin on an SQLite database, static files, and a form with a CSRF token.

python -m tests.frameworks.django_site   makes the database, with the user admin
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import django
from django.conf import settings
from django.contrib import admin
from django.contrib.staticfiles.handlers import StaticFilesHandler
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from django.http import HttpRequest, HttpResponse, JsonResponse, StreamingHttpResponse
from django.template import engines
from django.urls import path, reverse

FOLDER = Path(os.environ["FULGATE_TEST_FOLDER"])
USER, PASSWORD = "admin", "correct horse battery staple"

settings.configure(
    SECRET_KEY="for tests only",
    DEBUG=False,
    ALLOWED_HOSTS=["127.0.0.1", "localhost"],
    ROOT_URLCONF=__name__,
    DATABASES={"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": FOLDER / "site.db"}},
    DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
    STATIC_URL="static/",
    USE_TZ=True,
    INSTALLED_APPS=[
        "django.contrib.admin",
        "django.contrib.auth",
        "django.contrib.contenttypes",
        "django.contrib.messages",
        "django.contrib.sessions",
        "django.contrib.staticfiles",
    ],
    MIDDLEWARE=[
        "django.contrib.sessions.middleware.SessionMiddleware",
        "django.middleware.common.CommonMiddleware",
        "django.middleware.csrf.CsrfViewMiddleware",
        "django.contrib.auth.middleware.AuthenticationMiddleware",
        "django.contrib.messages.middleware.MessageMiddleware",
    ],
    TEMPLATES=[
        {
            "BACKEND": "django.template.backends.django.DjangoTemplates",
            "APP_DIRS": True,
            "OPTIONS": {
                "context_processors": [
                    "django.template.context_processors.request",
                    "django.contrib.auth.context_processors.auth",
                    "django.contrib.messages.context_processors.messages",
                ]
            },
        }
    ],
)
django.setup(set_prefix=False)

FORM = """<form method="post" enctype="multipart/form-data">{% csrf_token %}
<input name="name"><input type="file" name="file"><button>Send</button></form>"""


def form(request: HttpRequest) -> HttpResponse:
    """Show a form; of what is sent back, tell the name, and the file's length and SHA-256."""
    if request.method == "POST":
        file = request.FILES["file"]
        sha256 = hashlib.sha256()
        for chunk in file.chunks():
            sha256.update(chunk)
        return JsonResponse(
            {"name": request.POST["name"], "size": file.size, "sha256": sha256.hexdigest()}
        )
    return HttpResponse(engines["django"].from_string(FORM).render({}, request))


def numbers(request: HttpRequest) -> StreamingHttpResponse:
    return StreamingHttpResponse((f"{n}\n" for n in range(1000)), content_type="text/plain")


def links(request: HttpRequest, name: str) -> HttpResponse:
    """Tell a name from the path, and where the site believes that its pages are."""
    return JsonResponse(
        {"name": name, "admin": reverse("admin:index"), "here": request.build_absolute_uri()}
    )


urlpatterns = [
    path("admin/", admin.site.urls),
    path("form/", form),
    path("numbers/", numbers),
    path("links/<str:name>/", links),
]


# As `runserver` does; otherwise Django leaves static files to the web server.
application = StaticFilesHandler(WSGIHandler())
asgi = ASGIHandler()


def make_database() -> None:
    from django.contrib.auth.models import User
    from django.core.management import call_command

    call_command("migrate", verbosity=0)
    User.objects.create_superuser(USER, "admin@example.org", PASSWORD)


if __name__ == "__main__":
    make_database()
