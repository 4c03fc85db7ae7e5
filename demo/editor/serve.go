package editor

import (
	"context"
	"embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"
)

//go:embed static
var static embed.FS

// Node is one primary.
type Node struct {
	// Name is what its pane is called.
	Name string
	// Connect opens a session in its database. Two are open for as long as Serve runs.
	Connect func(context.Context) (*pgx.Conn, error)
	// Committed is called for each transaction that Serve has committed there, from any goroutine.
	Committed func()
	// Refused is called with why something that was typed could not be committed: it is lost, and pages show the row's text again.
	Refused func(error)
	// Cut cuts the node off from the others, or brings it back; it may take seconds.
	Cut func(ctx context.Context, off bool) error
}

// Serve serves the page on l, which it closes, until ctx ends, or with the error of a node whose session is lost. Each node's database has the
// tables of [Schema], and the row with id 1.
func Serve(ctx context.Context, l net.Listener, nodes []Node) error {
	s := &server{pages: map[*watcher]bool{}}
	asked := ctx
	group, ctx := errgroup.WithContext(asked)
	defer func() { // of what ended early
		for _, n := range s.nodes {
			n.row.conn.Close(context.WithoutCancel(ctx))
		}
	}()
	for _, n := range nodes {
		own, err := s.add(ctx, n)
		if err != nil {
			l.Close()
			return err
		}
		group.Go(func() error { return own.follow(ctx) })
	}
	web := &http.Server{Handler: s.routes(l.Addr().String()), ReadHeaderTimeout: 10 * time.Second,
		BaseContext: func(net.Listener) context.Context { return ctx }}
	group.Go(func() error {
		if err := web.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve the editor: %w", err)
		}
		return nil
	})
	<-ctx.Done()                                    // also of what failed
	err := web.Shutdown(context.WithoutCancel(ctx)) // requests end with ctx
	if failed := group.Wait(); asked.Err() == nil {
		err = errors.Join(failed, err)
	}
	return err
}

// server is one Serve.
type server struct {
	nodes []*own // as given

	mu    sync.Mutex
	pages map[*watcher]bool // that are open
}

// own is a node with what is open of it.
type own struct {
	Node
	desk *desk
	row  *row

	cutting sync.Mutex // held while it is cut off or brought back
	mu      sync.Mutex
	off     bool // guarded by mu
}

func (s *server) add(ctx context.Context, n Node) (*own, error) {
	conn, err := n.Connect(ctx)
	if err != nil {
		return nil, fmt.Errorf("node %s: %w", n.Name, err)
	}
	o := &own{Node: n, desk: &desk{pages: map[string]*pane{}}, row: &row{conn: conn}}
	s.nodes = append(s.nodes, o)
	if err := o.row.look(ctx, o.desk.look); err != nil { // before a page begins with it
		return nil, fmt.Errorf("node %s: %w", n.Name, err)
	}
	return o, nil
}

// follow keeps the desk informed of the row.
func (o *own) follow(ctx context.Context) error {
	conn, err := o.Connect(ctx)
	if err == nil {
		defer conn.Close(context.WithoutCancel(ctx))
		err = listen(ctx, conn, func(ctx context.Context) error { return o.row.look(ctx, o.desk.look) })
	}
	return fmt.Errorf("node %s: %w", o.Name, err)
}

func (s *server) node(name string) *own {
	for _, o := range s.nodes {
		if o.Name == name {
			return o
		}
	}
	return nil
}

func (s *server) routes(addr string) http.Handler {
	files, err := fs.Sub(static, "static")
	if err != nil {
		panic(err) // it is embedded
	}
	mux := http.NewServeMux()
	mux.Handle("GET /", http.FileServerFS(files))
	mux.HandleFunc("GET /events", s.events)
	mux.HandleFunc("POST /edit", s.edit)
	mux.HandleFunc("POST /cut", s.cut)
	// Another site's page may neither write here nor, by a name of its own that leads here, read.
	same := http.NewCrossOriginProtection().Handler(mux)
	_, port, _ := net.SplitHostPort(addr)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Host != addr && r.Host != net.JoinHostPort("localhost", port) {
			http.Error(w, fmt.Sprintf("this is %s, not %s", addr, r.Host), http.StatusMisdirectedRequest)
			return
		}
		w.Header().Set("Content-Security-Policy", "default-src 'self'; frame-ancestors 'none'")
		w.Header().Set("Cache-Control", "no-store")
		same.ServeHTTP(w, r)
	})
}

// bodyLimit bounds what a page may send at once.
const bodyLimit = 1 << 20

// asked reads what a request asks of a node, whose name is then in node; nil if that cannot be, which is answered.
func (s *server) asked(w http.ResponseWriter, r *http.Request, what any, node *string) *own {
	if err := json.NewDecoder(io.LimitReader(r.Body, bodyLimit)).Decode(what); err != nil {
		http.Error(w, "the request cannot be read: "+err.Error(), http.StatusBadRequest)
		return nil
	}
	o := s.node(*node)
	if o == nil {
		http.Error(w, "there is no node "+*node, http.StatusNotFound)
	}
	return o
}

func (s *server) edit(w http.ResponseWriter, r *http.Request) {
	var b batch
	o := s.asked(w, r, &b, &b.Node)
	if o == nil {
		return
	}
	// The page may have gone: what it has typed is written nevertheless.
	ctx := context.WithoutCancel(r.Context())
	written, err := o.row.write(ctx, func(text string) (string, error) { return o.desk.edit(&b, text) }, o.desk.forget)
	switch {
	case errors.Is(err, errStale):
		http.Error(w, err.Error(), http.StatusConflict)
	case err != nil:
		o.Refused(err)
		http.Error(w, err.Error(), http.StatusInternalServerError)
	default:
		if written {
			o.Committed()
		}
		w.WriteHeader(http.StatusNoContent)
	}
}

func (s *server) cut(w http.ResponseWriter, r *http.Request) {
	var q struct {
		Node string `json:"node"`
		Off  bool   `json:"off"`
	}
	o := s.asked(w, r, &q, &q.Node)
	if o == nil {
		return
	}
	if err := o.cut(context.WithoutCancel(r.Context()), q.Off); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	s.tell()
	w.WriteHeader(http.StatusNoContent)
}

func (o *own) cut(ctx context.Context, off bool) error {
	o.cutting.Lock()
	defer o.cutting.Unlock()
	if o.isOff() == off {
		return nil
	}
	if err := o.Cut(ctx, off); err != nil {
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	o.off = off
	return nil
}

func (o *own) isOff() bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.off
}
