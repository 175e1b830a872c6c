// The same as work.py, as far as Go's net/http/fcgi is compared. usage: work PATH
package main

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/fcgi"
	"os"
	"strconv"
	"strings"
	"time"
)

var large = []byte(strings.Repeat("x", 65536))
var piece = large[:16384]

func answer(w http.ResponseWriter, body []byte) {
	w.Header().Set("Content-Length", strconv.Itoa(len(body)))
	w.Write(body)
}

func serve(w http.ResponseWriter, r *http.Request) {
	path := strings.Split(r.URL.Path, "/")
	w.Header().Set("Content-Type", "text/plain")
	switch path[1] {
	case "":
		answer(w, []byte("hello world\n"))
	case "64k":
		answer(w, large)
	case "upload":
		read, _ := io.Copy(io.Discard, r.Body)
		answer(w, []byte(fmt.Sprintf("%11d\n", read)))
	case "stream":
		w.Header().Set("Content-Length", "1048576")
		for i := 0; i < 64; i++ {
			w.Write(piece)
		}
	case "wait":
		ms, _ := strconv.Atoi(path[2])
		time.Sleep(time.Duration(ms) * time.Millisecond)
		answer(w, []byte("hello world\n"))
	default:
		http.NotFound(w, r)
	}
}

func main() {
	listener, err := net.Listen("unix", os.Args[1])
	if err != nil {
		panic(err)
	}
	panic(fcgi.Serve(listener, http.HandlerFunc(serve)))
}
