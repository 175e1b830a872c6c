"""Django's settings. What differs from machine to machine comes from the environment."""

from __future__ import annotations

import os

import pymysql

# Django asks for MySQLdb, whose place PyMySQL takes: it needs no compiler. With mysqlclient
# installed, these two lines and their import go.
pymysql.install_as_MySQLdb()

SECRET_KEY = os.environ["GUESTBOOK_SECRET"]
ALLOWED_HOSTS = ["127.0.0.1", "localhost"]
DEBUG = False

DATABASES = {
    "default": {
        "ENGINE": "django.db.backends.mysql",
        "NAME": "guestbook",
        # MariaDB knows the user of the system who connects to its socket; there is no password.
        "USER": os.environ["GUESTBOOK_USER"],
        "OPTIONS": {
            "unix_socket": os.environ["GUESTBOOK_DATABASE"],
            "charset": "utf8mb4",
            "isolation_level": "read committed",
        },
        # Each thread of a worker keeps its connection for as long as the worker lives, and looks
        # before a request whether the database still knows it.
        "CONN_MAX_AGE": None,
        "CONN_HEALTH_CHECKS": True,
    }
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

INSTALLED_APPS = ["guestbook"]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]
ROOT_URLCONF = "guestbook.urls"
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {"context_processors": ["django.template.context_processors.request"]},
    }
]
USE_TZ = True
