package server

import (
	"net/http"
	"time"
)

// writeChunk is how much has to get through within the stall limit. With a
// minute for it, a client at 1 kB/s is still served.
const writeChunk = 32 << 10

// response is a http.ResponseWriter that cuts a client off which takes nothing,
// and knows what has been sent. Like every ResponseWriter it belongs to one goroutine
// at a time.
type response struct {
	http.ResponseWriter
	ctl     *http.ResponseController
	stall   time.Duration
	status  int
	written int64
	first   time.Time
	pace    *pacer  // nil: the kernel's own pace will do
	stream  *stream // that it sends, or nil
}

func newResponse(w http.ResponseWriter, stall time.Duration) *response {
	return &response{ResponseWriter: w, ctl: http.NewResponseController(w), stall: stall}
}

// Unwrap serves http.ResponseController.
func (w *response) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// WriteHeader implements http.ResponseWriter.
func (w *response) WriteHeader(status int) {
	if w.status == 0 && status >= http.StatusOK {
		w.status = status
		w.deadline()
	}
	w.ResponseWriter.WriteHeader(status)
}

// Write implements io.Writer.
func (w *response) Write(b []byte) (n int, err error) {
	if w.status == 0 {
		w.WriteHeader(http.StatusOK)
	}
	if w.first.IsZero() {
		w.first = time.Now()
	}
	for {
		part := b[n:min(len(b), n+writeChunk)]
		w.deadline()
		if w.pace != nil {
			w.pace.look(time.Now())
		}
		m, err := w.ResponseWriter.Write(part)
		n += m
		w.written += int64(m)
		if w.stream != nil {
			w.stream.wrote(m, w.pace)
		}
		if err != nil || n == len(b) {
			return n, err
		}
	}
}

// FlushError serves wire.Writer.
func (w *response) FlushError() error {
	w.deadline()
	return w.ctl.Flush()
}

// deadline is renewed before each write, and never taken back: it also bounds
// the flush that net/http does after the handler.
func (w *response) deadline() {
	// A connection that knows no deadlines is not one of a real client.
	_ = w.ctl.SetWriteDeadline(time.Now().Add(w.stall))
}

// readDeadline bounds reading from now on; 0 takes the bound away.
func (w *response) readDeadline(d time.Duration) error {
	var at time.Time
	if d > 0 {
		at = time.Now().Add(d)
	}
	return w.ctl.SetReadDeadline(at)
}

// began tells whether the client may have seen something of the response.
func (w *response) began() bool { return w.status != 0 }

// firstByte returns the time from began to the first byte; 0 if there was none.
func (w *response) firstByte(began time.Time) time.Duration {
	if w.first.IsZero() {
		return 0
	}
	return w.first.Sub(began)
}
