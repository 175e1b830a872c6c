from __future__ import annotations

import os

from django.db import connection
from django.forms import ModelForm
from django.http import HttpRequest, HttpResponse
from django.shortcuts import redirect, render

from guestbook.models import Entry


class EntryForm(ModelForm):
    class Meta:
        model = Entry
        fields = ("name", "text")


def index(request: HttpRequest) -> HttpResponse:
    """Show the latest entries and a form; take what the form sends."""
    form = EntryForm(request.POST or None)
    if request.method == "POST" and form.is_valid():
        form.save()
        return redirect(request.path)
    with connection.cursor() as cursor:
        cursor.execute("SELECT CONNECTION_ID()")
        (database_connection,) = cursor.fetchone()
    context = {
        "form": form,
        "count": Entry.objects.count(),
        "entries": Entry.objects.all()[:20],
        "worker": os.getpid(),
        "database_connection": database_connection,
    }
    return render(request, "guestbook/index.html", context, status=400 if form.errors else 200)
