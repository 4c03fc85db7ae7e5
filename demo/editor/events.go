package editor

import (
	"encoding/json"
	"fmt"
	"net/http"
	"time"
)

// watcher is one open page.
type watcher struct {
	wake chan struct{} // filled when there is something to tell
}

// state is what a page shows beside the texts.
type state struct {
	Nodes []nodeState `json:"nodes"`
}

type nodeState struct {
	Name string `json:"name"`
	Off  bool   `json:"off"`
}

// tell wakes all pages.
func (s *server) tell() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for w := range s.pages {
		select {
		case w.wake <- struct{}{}:
		default: // it is going to look
		}
	}
}

func (s *server) enter(w *watcher) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.pages[w] = true
}

func (s *server) leave(w *watcher) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.pages, w)
}

// state is the present one.
func (s *server) state() state {
	var all state
	for _, o := range s.nodes {
		all.Nodes = append(all.Nodes, nodeState{o.Name, o.isOff()})
	}
	return all
}

// aliveInterval is how often a page that has nothing to hear is told so: a connection that is lost is noticed by it.
const aliveInterval = 15 * time.Second

// events tells a page all that changes, as server-sent events, for as long as it is open.
func (s *server) events(w http.ResponseWriter, r *http.Request) {
	page := r.URL.Query().Get("page")
	if page == "" {
		http.Error(w, "which page? Say events?page=ID", http.StatusBadRequest)
		return
	}
	own := &watcher{wake: make(chan struct{}, 1)}
	s.enter(own)
	defer s.leave(own)
	for _, o := range s.nodes {
		o.desk.open(page, own.wake)
		defer o.desk.close(page, own.wake)
	}
	w.Header().Set("Content-Type", "text/event-stream")
	alive := time.NewTicker(aliveInterval)
	defer alive.Stop()
	out := http.NewResponseController(w)
	for last := ""; ; {
		err := s.tellPage(w, page, &last)
		if err == nil {
			err = out.Flush()
		}
		if err != nil {
			return // the page is gone
		}
		select {
		case <-own.wake:
		case <-alive.C:
			if _, err := fmt.Fprint(w, ": alive\n\n"); err != nil {
				return
			}
		case <-r.Context().Done():
			return
		}
	}
}

// tellPage writes what a page has not been told; last is the state that it was told.
func (s *server) tellPage(w http.ResponseWriter, page string, last *string) error {
	now, err := json.Marshal(s.state())
	if err == nil && string(now) != *last {
		*last = string(now)
		_, err = fmt.Fprintf(w, "event: state\ndata: %s\n\n", now)
	}
	for _, o := range s.nodes {
		d, ok := o.desk.next(page)
		if !ok || err != nil {
			continue
		}
		d.Node = o.Name
		var b []byte
		if b, err = json.Marshal(d); err == nil {
			_, err = fmt.Fprintf(w, "data: %s\n\n", b)
		}
	}
	return err
}
