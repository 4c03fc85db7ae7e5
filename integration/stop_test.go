package integration

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/pgbridge/pgbridge/integration/cluster"
	"github.com/pgbridge/pgbridge/integration/pgtest"
)

// TestStopDrains: a stop applies what has arrived, and ends in time where that cannot be.
func TestStopDrains(t *testing.T) {
	c := cluster.New(t, cluster.Options{Nodes: 2, Schema: `CREATE TABLE t (id int PRIMARY KEY)`, Config: map[string]string{"shutdown_timeout": "3s"}})
	a, b := c.Node("a"), c.Node("b")
	locker := pgtest.Connect(t, b.DSN)
	lock := func(sql string) {
		t.Helper()
		if _, err := locker.Exec(t.Context(), sql); err != nil {
			t.Fatal(err)
		}
	}
	stopping := func(id int) <-chan time.Duration {
		t.Helper()
		lock(`BEGIN; LOCK TABLE t`)
		a.Exec(`INSERT INTO t VALUES ($1)`, id)
		b.AwaitStatus(func(r *cluster.Report) bool { return r.Links[0].ReceivedSeq == uint64(id) })
		done, begun := make(chan time.Duration), time.Now()
		go func() {
			b.Stop()
			done <- time.Since(begun)
		}()
		return done
	}
	done := stopping(1)
	select {
	case d := <-done:
		t.Fatalf("stopped after %v, while a transaction that had arrived was not applied", d)
	case <-time.After(300 * time.Millisecond):
	}
	lock(`ROLLBACK`)
	<-done
	if n := b.Value(`SELECT count(*) FROM t`); n != "1" {
		t.Errorf("%s rows after the stop", n)
	}
	b.Start()
	if d := <-stopping(2); d > 3*time.Second {
		t.Errorf("the stop took %v, shutdown_timeout is 3s", d)
	}
	lock(`ROLLBACK`)
	b.Start()
	c.WaitConverged()
}

// TestHTTP: http.listen serves what the status socket does, and says in a code whether the bridge runs.
func TestHTTP(t *testing.T) {
	addr := cluster.FreeAddr(t)
	config := map[string]string{"http.listen": addr}
	c := cluster.New(t, cluster.Options{Nodes: 1, Own: true, Config: config})
	a := c.Node("a")
	get := func(path string) (int, string) {
		resp, err := http.Get("http://" + addr + path)
		if err != nil {
			return 0, err.Error()
		}
		defer resp.Body.Close()
		body, _ := io.ReadAll(resp.Body)
		return resp.StatusCode, string(body)
	}
	awaitHealth := func(want int) {
		t.Helper()
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		end := time.After(time.Minute)
		for code, body := get("/healthz"); code != want || strings.TrimSpace(body) == ""; code, body = get("/healthz") {
			select {
			case <-tick.C:
			case <-end:
				t.Fatalf("/healthz gives %d %s, not %d", code, body, want)
			}
		}
	}
	awaitHealth(http.StatusOK)
	var r cluster.Report
	if code, body := get("/status"); code != http.StatusOK || json.Unmarshal([]byte(body), &r) != nil || r.Node != "a" || r.Slot.Slot == "" {
		t.Errorf("/status: %d %s", code, body)
	}
	for _, path := range []string{"/", "/console/", "/console/api/session"} { // there is no console without a token
		if code, _ := get(path); code != http.StatusNotFound {
			t.Errorf("%s: %d", path, code)
		}
	}
	const heap, command = "/debug/pprof/heap?debug=1", "/debug/pprof/cmdline"
	if code, _ := get(heap); code != http.StatusNotFound {
		t.Errorf("%s: %d without http.pprof", heap, code)
	}
	a.Stop()
	config["http.pprof"] = "true"
	a.Start()
	if code, body := get(heap); code != http.StatusOK || !strings.HasPrefix(body, "heap profile") {
		t.Errorf("%s: %d %s", heap, code, body)
	}
	if code, _ := get(command); code != http.StatusNotFound {
		t.Errorf("%s: %d", command, code)
	}
	if err := a.PG.Kill(); err != nil {
		t.Fatal(err)
	}
	awaitHealth(http.StatusServiceUnavailable)
	a.Stop()
	if code, _ := get("/healthz"); code != 0 {
		t.Errorf("a stopped bridge answers %d", code)
	}
}
