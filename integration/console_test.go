package integration

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/pgbridge/pgbridge/bridge"
	"github.com/pgbridge/pgbridge/integration/cluster"
)

const (
	consoleViewer   = "viewers-may-look-on"
	consoleOperator = "operators-may-act-too"
)

// seat is somebody who sits at the console of a node.
type seat struct {
	t      *testing.T
	n      *cluster.Node
	base   string
	client *http.Client
}

// withConsole gives a node's configuration a console, before its bridge starts.
func withConsole(t *testing.T, n *cluster.Node) *seat {
	t.Helper()
	addr, secret := cluster.FreeAddr(t), filepath.Join(n.Dir, "operator")
	text, err := os.ReadFile(n.File)
	if err == nil {
		text = fmt.Appendf(text, "http:\n  listen: %s\n  viewer_token: %s\n  operator_token_file: %s\n", addr, consoleViewer, secret)
		err = os.WriteFile(n.File, text, 0o600)
	}
	if err == nil {
		err = os.WriteFile(secret, []byte(consoleOperator+"\n"), 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	return &seat{t: t, n: n, base: "http://" + addr + "/console/"}
}

// as signs in.
func (s *seat) as(token string) *seat {
	s.t.Helper()
	jar, err := cookiejar.New(nil)
	if err != nil {
		s.t.Fatal(err)
	}
	p := *s
	p.client = &http.Client{Jar: jar, Transport: &http.Transport{DisableKeepAlives: true}}
	if code, text := p.send("sign-in", map[string]string{"token": token}); code != http.StatusOK {
		s.t.Fatalf("sign-in at %s: %d %s", s.base, code, text)
	}
	return &p
}

// send posts, and returns the status with the answer.
func (s *seat) send(path string, body any) (int, string) {
	s.t.Helper()
	text, err := json.Marshal(body)
	if err != nil {
		s.t.Fatal(err)
	}
	resp, err := s.client.Post(s.base+path, "application/json", strings.NewReader(string(text)))
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	answer, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	return resp.StatusCode, string(answer)
}

// act posts what must be done.
func act[T any](s *seat, path string, body any) (answer T) {
	s.t.Helper()
	code, text := s.send("api/"+path, body)
	if err := json.Unmarshal([]byte(text), &answer); err != nil || code != http.StatusOK {
		s.t.Fatalf("%s %v: %d %s\n%s", path, body, code, text, s.n.LogTail())
	}
	return answer
}

// see gets what must be there.
func see[T any](s *seat, path string) (answer T) {
	s.t.Helper()
	resp, err := s.client.Get(s.base + "api/" + path)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		s.t.Fatal(err)
	}
	if err := json.Unmarshal(text, &answer); err != nil || resp.StatusCode != http.StatusOK {
		s.t.Fatalf("%s: %d %s\n%s", path, resp.StatusCode, text, s.n.LogTail())
	}
	return answer
}

// consoleStatus is what the test looks at of a status.
type consoleStatus struct {
	Report *bridge.Report
	Nodes  []struct{ Node string }
	Links  [][2]string
	Paused []bridge.Pause
}

// awaitSeen looks until what is seen is right.
func awaitSeen[T any](s *seat, path string, ok func(T) bool) {
	s.t.Helper()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	end := time.After(time.Minute)
	for {
		x := see[T](s, path)
		if ok(x) {
			return
		}
		select {
		case <-tick.C:
		case <-end:
			s.t.Fatalf("%s shows %+v for a minute\n%s", path, x, s.n.LogTail())
		}
	}
}

// verify compares, and returns the report with how often it was told how far it had come.
func (s *seat) verify(body any) (r *bridge.VerifyReport, told int) {
	s.t.Helper()
	text, err := json.Marshal(body)
	if err != nil {
		s.t.Fatal(err)
	}
	resp, err := s.client.Post(s.base+"api/verify", "application/json", strings.NewReader(string(text)))
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	for lines := bufio.NewScanner(resp.Body); lines.Scan(); {
		var line struct {
			Progress *bridge.VerifyProgress
			Report   *bridge.VerifyReport
			Error    string
		}
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil || line.Error != "" {
			s.t.Fatalf("compare: %v %s\n%s", err, lines.Text(), s.n.LogTail())
		}
		if line.Progress != nil {
			told++
		}
		r = line.Report
	}
	if r == nil {
		s.t.Fatalf("the comparison ended without a report\n%s", s.n.LogTail())
	}
	return r, told
}

// conflictsSeen is what the test looks at of a list of conflicts.
type conflictsSeen struct {
	Conflicts []struct {
		ID            int64
		Table, Winner string
	}
	More  bool
	Kinds []string
}

// TestConsole: what people see and do in a browser, at two nodes that replicate: conflicts and their undo, pauses, parked transactions,
// a comparison, the configuration; and who may.
func TestConsole(t *testing.T) {
	t.Parallel()
	c := cluster.New(t, cluster.Options{Nodes: 2, Schema: `CREATE TABLE r (id int PRIMARY KEY, v int)`, Idle: true})
	a := c.Node("a")
	seats := map[string]*seat{}
	for _, n := range c.Nodes {
		seats[n.Name] = withConsole(t, n)
	}
	for _, n := range c.Nodes {
		n.Start()
	}
	atA, atB, viewer := seats["a"].as(consoleOperator), seats["b"].as(consoleOperator), seats["b"].as(consoleViewer)
	a.Exec(`INSERT INTO r VALUES (1, 1), (2, 2), (3, 3)`)
	c.WaitConverged()

	x := see[consoleStatus](viewer, "status")
	if x.Report.Node != "b" || len(x.Nodes) != 2 || len(x.Links) != 1 || x.Links[0] != [2]string{"a", "b"} || len(x.Paused) != 0 {
		t.Errorf("the status is %+v", x)
	}
	awaitSeen(viewer, "others", func(all []struct {
		Node   string
		Report *bridge.Report
	}) bool {
		return len(all) == 1 && all[0].Node == "a" && all[0].Report != nil && all[0].Report.Node == "a" && len(all[0].Report.Links) == 1
	})

	consoleConflict(t, atA, atB)
	consoleParked(t, a, atB)
	consoleVerify(t, c, atB)
	consoleViewers(t, viewer)
	c.WaitConverged()
}

// consoleConflict has both nodes hold back what the other one writes, so that two writes of a row do not know of each other.
func consoleConflict(t *testing.T, atA, atB *seat) {
	t.Helper()
	a, b := atA.n, atB.n
	pause := func(s *seat, node string) {
		act[struct{}](s, "pause", map[string]string{"origin": node, "reason": "to be looked at"})
		awaitSeen(s, "status", func(x consoleStatus) bool {
			return len(x.Paused) == 1 && x.Paused[0].Origin == node && x.Paused[0].Reason == "to be looked at"
		})
	}
	if code, text := atB.send("api/pause", map[string]string{"origin": "nobody"}); code != http.StatusConflict || !strings.Contains(text, "topology.nodes has a") {
		t.Errorf("pause of nobody: %d %s", code, text)
	}
	pause(atA, "b")
	pause(atB, "a")
	a.Exec(`UPDATE r SET v = 10 WHERE id < 3`)
	b.Exec(`UPDATE r SET v = 20 WHERE id < 3`)
	awaitSeen(atB, "status", func(x consoleStatus) bool { return x.Report.Links[0].Queued == 1 })
	if got := b.Value(`SELECT v FROM r WHERE id = 1`); got != "20" {
		t.Errorf("what is held back is there: %s", got)
	}
	act[struct{}](atA, "resume", map[string]string{"origin": "b"})
	act[struct{}](atB, "resume", map[string]string{"origin": "a"})
	a.Await(`SELECT v FROM r WHERE id = 1`, "20")
	b.Await(`SELECT count(*) FROM pgbridge.conflict`, "2")

	list := see[conflictsSeen](atB, "conflicts?table=public.*&kind=update_update&limit=1")
	if len(list.Conflicts) != 1 || !list.More || list.Conflicts[0].Winner != "b" || len(list.Kinds) < 10 {
		t.Fatalf("conflicts are %+v", list)
	}
	older := see[conflictsSeen](atB, fmt.Sprintf("conflicts?before=%d", list.Conflicts[0].ID))
	if len(older.Conflicts) != 1 || older.More || older.Conflicts[0].ID >= list.Conflicts[0].ID {
		t.Errorf("older ones are %+v", older)
	}
	path := fmt.Sprintf("conflicts/%d", older.Conflicts[0].ID)
	d := see[struct {
		Table   string
		Columns []struct {
			Name          string
			Local, Remote string
			Differs       bool
		}
	}](atB, path)
	if len(d.Columns) != 2 || d.Columns[0].Differs || !d.Columns[1].Differs || d.Columns[1].Local != "20" || d.Columns[1].Remote != "10" {
		t.Errorf("%s is %+v", path, d)
	}
	id := d.Columns[0].Local
	act[struct{}](atB, path+"/undo", map[string]bool{})
	a.Await(`SELECT v FROM r WHERE id = `+id, "10")
	if by := b.Value(`SELECT undone_by FROM pgbridge.conflict WHERE id = $1`, older.Conflicts[0].ID); !strings.Contains(by, "console@127.0.0.1") {
		t.Errorf("undone by %s", by)
	}
	if code, text := atB.send("api/"+path+"/undo", map[string]bool{}); code != http.StatusConflict || !strings.Contains(text, "it was undone at") {
		t.Errorf("undone twice: %d %s", code, text)
	}
	if code, text := atB.send("api/conflicts/999999/undo", map[string]bool{}); code != http.StatusNotFound || !strings.Contains(text, "no such conflict") {
		t.Errorf("undo of none: %d %s", code, text)
	}
}

// consoleParked has node b refuse a transaction until its cause is mended, and then another one for good.
func consoleParked(t *testing.T, a *cluster.Node, atB *seat) {
	t.Helper()
	b := atB.n
	b.Exec(`ALTER TABLE r ADD CONSTRAINT small CHECK (v < 100)`)
	a.Exec(`UPDATE r SET v = 1000 WHERE id = 3`)
	type parked struct {
		Name, Constraint string
	}
	awaitSeen(atB, "parked", func(all []parked) bool { return len(all) == 1 && all[0].Constraint == "small" })
	name := see[[]parked](atB, "parked")[0].Name
	changes := see[struct {
		Changes int64
		Rows    []struct {
			Columns []struct{ Name, Remote string }
		}
	}](atB, "parked/changes?name="+name)
	if changes.Changes != 1 || len(changes.Rows) != 1 || changes.Rows[0].Columns[1].Name != "v" || changes.Rows[0].Columns[1].Remote != "1000" {
		t.Errorf("its changes are %+v", changes)
	}
	type outcome struct {
		Done    []string
		Left    []parked
		Running bool
	}
	if o := act[outcome](atB, "parked/retry", map[string]string{"name": name}); len(o.Done) != 0 || len(o.Left) != 1 || !o.Running {
		t.Errorf("retry before the cause is mended: %+v", o)
	}
	b.Exec(`ALTER TABLE r DROP CONSTRAINT small`)
	if o := act[outcome](atB, "parked/retry", map[string]bool{"all": true}); len(o.Done) != 1 || o.Done[0] != name || len(o.Left) != 0 {
		t.Errorf("retry: %+v", o)
	}
	b.Await(`SELECT v FROM r WHERE id = 3`, "1000")
	if code, text := atB.send("api/parked/discard", map[string]string{"name": name}); code != http.StatusNotFound || !strings.Contains(text, "no such transaction is parked") {
		t.Errorf("discard of what is not parked: %d %s", code, text)
	}
}

// consoleVerify has a row differ, finds it and mends it.
func consoleVerify(t *testing.T, c *cluster.Cluster, atB *seat) {
	t.Helper()
	c.WaitConverged()
	if r, told := atB.verify(map[string]any{"table": "public.r"}); r.Differences != 0 || r.Rows != 3 || told == 0 {
		t.Errorf("equal nodes: told %d times, %+v", told, r)
	}
	plant(t, c.Name, atB.n, `UPDATE r SET v = 7 WHERE id = 3`)
	r, _ := atB.verify(map[string]any{"table": "public.r", "nodes": []string{"a"}})
	if r.Differences != 1 || r.Mended != 0 || len(r.Found) != 1 || len(r.Found[0].Nodes) != 2 {
		t.Errorf("planted: %+v", r)
	}
	if r, _ := atB.verify(map[string]any{"repair": true, "from": "a"}); r.Differences != 1 || r.Mended != 1 {
		t.Errorf("mended: %+v", r)
	}
	atB.n.Await(`SELECT v FROM r WHERE id = 3`, "1000")
}

// consoleViewers: they see all and do nothing, and no secret is shown to anybody.
func consoleViewers(t *testing.T, viewer *seat) {
	t.Helper()
	for path, body := range map[string]any{"pause": map[string]string{"origin": "a"}, "resume": map[string]string{"origin": "a"}, "parked/retry": map[string]bool{"all": true},
		"conflicts/1/undo": map[string]bool{"force": true}, "verify": map[string]bool{"repair": true}} {
		if code, text := viewer.send("api/"+path, body); code != http.StatusForbidden || !strings.Contains(text, "viewers may look") {
			t.Errorf("%s as a viewer: %d %s", path, code, text)
		}
	}
	stranger := *viewer
	stranger.client = &http.Client{}
	if code, text := stranger.send("sign-in", map[string]string{"token": "a token of nobody here"}); code != http.StatusUnauthorized {
		t.Errorf("a wrong token: %d %s", code, text)
	}
	if got := get(t, viewer.n, "/metrics"); !strings.Contains(got, "pgbridge_console_refused_sign_ins_total 1\n") {
		t.Errorf("the refused sign-in is not counted:\n%s", got)
	}
	settings := see[[]struct{ Key, Value string }](viewer, "settings")
	shown, _ := json.Marshal(settings)
	if len(settings) < 40 || !strings.Contains(string(shown), `"Key":"http.operator_token","Value":"xxxxx"`) {
		t.Errorf("the configuration is %s", shown)
	}
	log, err := os.ReadFile(filepath.Join(viewer.n.Dir, "bridge.log"))
	if err != nil {
		t.Fatal(err)
	}
	for what, text := range map[string]string{"the log": string(log), "the status": get(t, viewer.n, "/status"), "the configuration": string(shown)} {
		for _, secret := range []string{consoleViewer, consoleOperator} {
			if strings.Contains(text, secret) {
				t.Errorf("%s has the token %s", what, secret)
			}
		}
	}
	if code, _ := viewer.send("sign-out", struct{}{}); code != http.StatusOK {
		t.Errorf("sign-out: %d", code)
	}
	if code, _ := viewer.send("api/pause", struct{}{}); code != http.StatusUnauthorized {
		t.Errorf("behind sign-out: %d", code)
	}
}
