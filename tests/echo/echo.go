// Answers with the request's own body, on Go's net/http/fcgi. The socket is descriptor 0.
package main

import (
	"io"
	"net/http"
	"net/http/fcgi"
	"os"
	"strconv"
	"time"
)

const piece = 8192

func echo(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Type", "text/plain")
	w.Header().Set("X-Method", r.Method)
	w.Header().Set("X-Given", r.Header.Get("X-Given"))
	switch r.URL.Path {
	case "/size":
		size(w, r)
	case "/stream":
		stream(w, r)
	case "/endless":
		endless(w, r)
	case "/missing":
		w.WriteHeader(404)
		fallthrough
	default:
		body, _ := io.ReadAll(r.Body)
		w.Write(body)
	}
}

func size(w http.ResponseWriter, r *http.Request) {
	left, _ := strconv.Atoi(r.URL.RawQuery)
	buffer := make([]byte, piece)
	for i := range buffer {
		buffer[i] = byte(i)
	}
	for ; left > 0; left -= piece {
		if left < piece {
			buffer = buffer[:left]
		}
		w.Write(buffer)
	}
}

func stream(w http.ResponseWriter, r *http.Request) {
	buffer := make([]byte, piece)
	for {
		n, err := io.ReadFull(r.Body, buffer)
		w.Write(buffer[:n])
		w.(http.Flusher).Flush()
		if err != nil {
			return
		}
	}
}

// A ResponseWriter tells nobody that the connection is gone, before its buffer is full; so do records.
func endless(w http.ResponseWriter, r *http.Request) {
	buffer := make([]byte, 100000)
	for {
		if _, err := w.Write(buffer); err != nil {
			os.WriteFile(r.Header.Get("X-Given"), nil, 0644)
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func main() {
	fcgi.Serve(nil, http.HandlerFunc(echo))
}
