package integration

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/pgbridge/pgbridge/bridge"
	"github.com/pgbridge/pgbridge/integration/cluster"
	"github.com/pgbridge/pgbridge/integration/pgtest"
)

// TestReadYourOwnWritesElsewhere: a token says what its node had; who waits for it on another one sees that, and what that
// had seen.
func TestReadYourOwnWritesElsewhere(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Schema: `CREATE TABLE t (id int PRIMARY KEY, v text)`,
		Config: map[string]string{"topology.failover_after": "0s"}}) // what is cut off stays so
	a, b, z := c.Node("a"), c.Node("b"), c.Node("c")
	token := func(n *cluster.Node) string {
		t.Helper()
		text, err := bridge.Token(t.Context(), n.Load())
		if err != nil {
			t.Fatal(err)
		}
		return text
	}
	for i := range 20 {
		from, to := c.Nodes[i%3], c.Nodes[(i+1)%3]
		from.Exec(fmt.Sprintf(`INSERT INTO t VALUES (%d, 'x')`, i))
		if got := to.Value(`SELECT pgbridge.wait($1)`, token(from)); got != "t" {
			t.Fatalf("wait gives %s", got)
		}
		if got := to.Value(`SELECT count(*) FROM t`); got != fmt.Sprint(i+1) { // also what the node before had seen
			t.Errorf("node %s shows %s rows behind row %d", to.Name, got, i)
		}
	}

	z.Links["a"].Cut()
	a.Exec(`INSERT INTO t VALUES (100, 'of a')`)
	if err := bridge.Wait(t.Context(), b.Load(), token(a), time.Minute); err != nil {
		t.Error(err)
	}
	b.Exec(`INSERT INTO t VALUES (101, 'of b, which has seen it')`)
	text := token(b)
	if err := bridge.Wait(t.Context(), z.Load(), text, 0); !errors.Is(err, bridge.ErrNotYet) {
		t.Errorf("c has what it cannot: %v", err)
	}
	// Who waits in SQL holds up no bridge that starts.
	ctx, cancel := context.WithCancel(t.Context())
	waits := make(chan error)
	waiter := pgtest.Connect(t, z.DSN)
	go func() {
		_, err := waiter.Exec(ctx, `SELECT pgbridge.wait($1, '1 h')`, text)
		waits <- err
	}()
	z.Await(`SELECT count(*) FROM pg_locks WHERE relation = 'pgbridge.node'::regclass AND mode = 'AccessShareLock' AND pid = `+fmt.Sprint(waiter.PgConn().PID()), "1")
	limit, end := context.WithTimeout(t.Context(), time.Minute)
	if err := bridge.Setup(limit, z.Load(), nil); err != nil {
		t.Errorf("setup while somebody waits: %v", err)
	}
	end()
	cancel()
	if err := <-waits; err == nil {
		t.Error("c has what it cannot")
	}
	z.Links["a"].Heal()
	if err := bridge.Wait(t.Context(), z.Load(), text, time.Minute); err != nil {
		t.Error(err)
	}
	if got := z.Value(`SELECT count(*) FROM t WHERE id >= 100`); got != "2" {
		t.Errorf("c shows %s of both rows", got)
	}

	for _, bad := range []struct{ token, reason string }{
		{"nonsense", "is not a token"}, {"a:1;DROP", "is not a token"}, {"nobody:1", "of which this node knows nothing"},
	} {
		if err := bridge.Wait(t.Context(), b.Load(), bad.token, 0); err == nil || !strings.Contains(err.Error(), bad.reason) {
			t.Errorf("%s: %v", bad.token, err)
		}
	}
	conn := pgtest.Connect(t, b.DSN)
	tx, err := conn.Begin(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if _, err = tx.Exec(t.Context(), `SET TRANSACTION ISOLATION LEVEL REPEATABLE READ`); err == nil {
		_, err = tx.Exec(t.Context(), `SELECT pgbridge.wait('a:1')`)
	}
	if err == nil || !strings.Contains(err.Error(), "sees nothing new") {
		t.Errorf("in a transaction with one snapshot: %v", err)
	}
}

// TestWaitOverHTTP asks as an application would.
func TestWaitOverHTTP(t *testing.T) {
	t.Parallel()
	listen := cluster.FreeAddr(t)
	c := cluster.New(t, cluster.Options{Nodes: 2, Idle: true, Schema: `CREATE TABLE t (id int PRIMARY KEY)`,
		Config: map[string]string{"http.listen": listen}})
	a, b := c.Node("a"), c.Node("b")
	get := func(path string) (int, string) {
		t.Helper()
		resp, err := http.Get("http://" + listen + path)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp.StatusCode, strings.TrimSpace(string(text))
	}
	a.Start() // one address, so one node
	a.Exec(`INSERT INTO t VALUES (1)`)
	code, token := get("/token")
	if code != http.StatusOK || !strings.HasPrefix(token, "a:") {
		t.Fatalf("%d, %s", code, token)
	}
	for path, want := range map[string]int{
		"/wait?for=" + url.QueryEscape(token): http.StatusOK, "/wait?for=b:5&timeout=0s": http.StatusGatewayTimeout,
		"/wait?for=x:1": http.StatusBadRequest, "/wait?for=a:1&timeout=soon": http.StatusBadRequest,
	} {
		if code, text := get(path); code != want {
			t.Errorf("%s: %d, %s; want %d", path, code, text, want)
		}
	}
	crowd, end := context.WithCancel(t.Context())
	var waiting errgroup.Group
	refused := make(chan struct{}, 40)
	for range 40 {
		waiting.Go(func() error {
			req, err := http.NewRequestWithContext(crowd, http.MethodGet, "http://"+listen+"/wait?for=b:5&timeout=1m", nil)
			if err != nil {
				return err
			}
			resp, err := http.DefaultClient.Do(req)
			if err != nil {
				return nil // it waited until the end
			}
			defer resp.Body.Close()
			if resp.StatusCode != http.StatusServiceUnavailable {
				return fmt.Errorf("one in a crowd gets %d", resp.StatusCode)
			}
			refused <- struct{}{}
			return nil
		})
	}
	for range 8 {
		<-refused
	}
	end()
	if err := waiting.Wait(); err != nil {
		t.Error(err)
	}
	if _, err := bridge.Token(t.Context(), b.Load()); !errors.Is(err, bridge.ErrNotRunning) {
		t.Errorf("a token of a node without a bridge: %v", err)
	}
}
