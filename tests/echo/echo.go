// Answers with the request's own body, on Go's net/http/fcgi. The socket is descriptor 0.
package main

import (
	"io"
	"net/http"
	"net/http/fcgi"
)

func echo(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	w.Header().Set("X-Method", r.Method)
	w.Header().Set("X-Given", r.Header.Get("X-Given"))
	if r.URL.Path == "/missing" {
		w.WriteHeader(404)
	}
	w.Write(body)
}

func main() {
	fcgi.Serve(nil, http.HandlerFunc(echo))
}
