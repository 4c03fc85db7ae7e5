package bridge

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/errgroup"

	"github.com/pgbridge/pgbridge/apply"
	"github.com/pgbridge/pgbridge/capture"
	"github.com/pgbridge/pgbridge/config"
	"github.com/pgbridge/pgbridge/origin"
	"github.com/pgbridge/pgbridge/stream"
	"github.com/pgbridge/pgbridge/topology"
)

// A node joins by a command of its own, which copies the rows while no bridge runs for it (apply/since.go), and then by a bridge, which
// takes in what came meanwhile and reads on.

// JoinOptions say how a node joins.
type JoinOptions struct {
	From      string // the node that gives the rows
	Jobs      int    // sessions that copy side by side
	SchemaDSN string // of a database whose schema is taken where tables are missing; empty: they must be there
	Logger    *slog.Logger
	PageRows  int // rows that are copied at once, at most; 20 000 if zero
	// Existing: rows that stand in the tables already, from a dump or a backup, stay where the donor has the same.
	Existing bool
	// Tell is called with what is being done, Progress when rows were copied; from one goroutine at a time each.
	Tell     func(text string)
	Progress func(JoinProgress)
}

// JoinProgress is how far a node has come with copying.
type JoinProgress struct {
	Rows, About int64 // copied, of about so many
	Bytes       int64
	Took        time.Duration // since this run of the command began to copy
	Before      int64         // rows that earlier runs have copied
}

// MostJobs is how many sessions may copy side by side.
const MostJobs = 32

const (
	// pageBytes is about how large a page is, pageRows how many rows it has at most.
	pageBytes, pageRows = 8 << 20, 20_000
	// partRows is about how many rows a part has at least, and parts how many there are of a table at most.
	partRows, parts = 100_000, 32
	// offeredRows is how many rows a page has at most of which hashes are told: they go out in one message.
	offeredRows = 10_000
	// pageTries bounds how often in a row a page may fail, pagesPause apart, before the command gives up. It can be run again.
	pageTries, pagesPause = 12, 5 * time.Second
)

// join is one run of the command.
type join struct {
	*asker
	o      JoinOptions
	joiner *apply.Joiner
	rows   atomic.Int64
	bytes  atomic.Int64
	moved  chan struct{} // of capacity 1: there is progress to tell of
}

// Join makes the node of this configuration one of the cluster, with the rows of another one. It goes on where an earlier run ended.
func Join(ctx context.Context, cfg *config.Config, o JoinOptions) error {
	if err := checkJoin(cfg, &o); err != nil {
		return err
	}
	unlock, err := lockDataDir(cfg.DataDir)
	if err != nil {
		return err
	}
	copied := func() error {
		defer unlock()
		j := &join{asker: newAsker(cfg, o.Logger), o: o, moved: make(chan struct{}, 1)}
		defer j.close()
		return j.copied(ctx)
	}
	switch err := copied(); {
	case err != nil && ctx.Err() != nil: // whatever was cut off by it
		return context.Cause(ctx)
	case err != nil:
		return err
	}
	return catchUp(ctx, cfg, o)
}

func checkJoin(cfg *config.Config, o *JoinOptions) error {
	if o.Tell == nil {
		o.Tell = func(string) {}
	}
	if o.Progress == nil {
		o.Progress = func(JoinProgress) {}
	}
	switch {
	case o.From == cfg.Node:
		return &configError{fmt.Sprintf("node %s cannot join from itself; name another one of %s", o.From, strings.Join(peerNames(cfg), ", "))}
	case cfg.Topology.Nodes[o.From] == "":
		return &configError{fmt.Sprintf("there is no node %q in topology.nodes; name one of %s", o.From, strings.Join(peerNames(cfg), ", "))}
	case o.Jobs < 1 || o.Jobs > MostJobs:
		return &configError{fmt.Sprintf("%d jobs; write 1 to %d", o.Jobs, MostJobs)}
	}
	return nil
}

// copied returns when all rows are here and the node is set up.
func (j *join) copied(ctx context.Context) error {
	if err := capture.CheckServer(ctx, checkOptions(j.cfg, j.primary)); err != nil {
		return err
	}
	state, err := readJoining(ctx, j.primary)
	if err != nil {
		return err
	}
	ran, err := hasRun(ctx, j.primary)
	switch {
	case err != nil:
		return err
	case state != nil && state.State == apply.Joined:
		return &configError{fmt.Sprintf("node %s has joined already; start its bridge", j.cfg.Node)}
	case state == nil && ran:
		return &configError{fmt.Sprintf("a bridge has run for node %s before, so that it is one of the cluster already; to begin anew, remove it (pgbridge node remove) and "+
			"let an empty database join under another name", j.cfg.Node)}
	case state != nil && state.State == apply.Copied:
		return j.setUp(ctx)
	}
	seen, err := j.meet(ctx)
	if err != nil {
		return err
	}
	// What is copied must not be read by a slot as what users wrote.
	slot, err := capture.ReadSlot(ctx, j.primary, slotName(j.cfg))
	if err != nil {
		return err
	}
	if slot.State != "missing" {
		return &configError{fmt.Sprintf("slot %s is there already, and a node has none before its rows are copied; run SELECT pg_drop_replication_slot('%[1]s')", slotName(j.cfg))}
	}
	if j.joiner, err = apply.OpenJoiner(ctx, j.cfg.Postgres.DSN, j.cfg.Node, mergePolicies(j.cfg)); err != nil {
		return err
	}
	defer j.joiner.Close()
	if state == nil {
		if err := j.begin(ctx, seen); err != nil {
			return err
		}
	}
	if err := j.joiner.Lock(ctx); err != nil {
		return err
	}
	if state, err = j.joiner.State(ctx); err != nil {
		return err
	}
	if state == nil || state.State != apply.Copying {
		return fmt.Errorf("node %s is not being joined any more; see pgbridge.joining", j.cfg.Node)
	}
	if state.Donor != j.o.From {
		if err := j.joiner.From(ctx, j.o.From); err != nil {
			return err
		}
	}
	if err := j.copyAll(ctx, state); err != nil {
		return err
	}
	if state, err = j.joiner.State(ctx); err != nil {
		return err
	}
	if state.Existing == 0 {
		j.o.Tell("all rows are copied; checks them")
	} else {
		j.o.Tell(fmt.Sprintf("all rows are here, %d of them stood here before; checks them", state.Kept))
	}
	if err := j.joiner.Finish(ctx, state.Since); err != nil {
		return err
	}
	return j.setUp(ctx)
}

// setUp makes publication and slot, now that what is copied counts as older.
func (j *join) setUp(ctx context.Context) error {
	o, err := captureSetup(ctx, j.cfg, j.primary)
	if err != nil {
		return err
	}
	o.Waits = j.o.Tell
	return capture.Setup(ctx, o)
}

// meet asks all nodes whether they know this one, and then the donor what it has.
func (j *join) meet(ctx context.Context) (*nodeSeen, error) {
	for _, node := range peerNames(j.cfg) {
		if err := j.known(ctx, node); err != nil {
			return nil, err
		}
	}
	seen := &nodeSeen{}
	if err := j.patiently(ctx, j.o.From, &nodeQuestion{Ask: askSeen}, seen, j.o.Tell); err != nil {
		return nil, err
	}
	var major int
	if err := j.primary.Ask(ctx, func(conn *pgx.Conn) (err error) {
		major, err = apply.ServerMajor(ctx, conn)
		return err
	}); err != nil {
		return nil, err
	}
	if seen.Major > major {
		return nil, &configError{fmt.Sprintf("node %s has PostgreSQL %d, and this one %d; join with the same version or a newer one", j.o.From, seen.Major, major)}
	}
	return seen, nil
}

// known checks that a node's bridge was given this topology, and the same policies: from then on it forgets nothing that this node needs.
func (j *join) known(ctx context.Context, node string) error {
	nc, err := j.conn(ctx, node)
	if err != nil {
		return fmt.Errorf("whether all nodes know of this one cannot be seen: %w", err)
	}
	r, err := stream.NewReader(nc, stream.ReaderOptions{Cluster: j.cfg.Cluster, Sender: node, Origin: node, Logger: j.log})
	if err != nil {
		return err
	}
	notes, err := r.Notes(ctx)
	if stream.IsNoStream(err) {
		return &configError{fmt.Sprintf("node %s has no stream in cluster %s at %s; correct topology.nodes, or start its bridge", node, j.cfg.Cluster, j.cfg.Redacted().Topology.Nodes[node])}
	}
	if err != nil {
		return fmt.Errorf("node %s: %w", node, err)
	}
	if slices.Contains(strings.Fields(notes[goneNote]), j.cfg.Node) {
		return &outcast{fmt.Sprintf("a node %s was removed from cluster %s, and its name is not used again; give this one another name", j.cfg.Node, j.cfg.Cluster)}
	}
	if d := topology.Difference(j.cfg.Graph().String(), notes[topologyNote]); d != "" {
		return &configError{fmt.Sprintf("node %s was not given the topology of this one (%s); give all nodes the same, start their bridges again one after the other, and join then", node, d)}
	}
	for key, own := range j.cfg.Policies() {
		if notes[key] != own {
			return &configError{fmt.Sprintf("%s of node %s is %q, and here it is %q; let all nodes have the same", key, node, notes[key], own)}
		}
	}
	return nil
}

// begin looks whether the rows fit here, and notes what is to be copied. Nothing is changed before all is known to fit but that a
// schema is taken over that is wanted.
func (j *join) begin(ctx context.Context, seen *nodeSeen) error {
	var of nodeTables
	if err := j.patiently(ctx, j.o.From, &nodeQuestion{Ask: askTables}, &of, j.o.Tell); err != nil {
		return err
	}
	columns, err := j.fit(ctx, of.Tables)
	if err != nil {
		return err
	}
	since, err := vectorOf(seen.Vector)
	if err != nil {
		return err
	}
	if e := since.Get(originOf(j.cfg.Node)); e.Seq > 0 {
		return &configError{fmt.Sprintf("node %s has %d transactions of a node %s; give this one another name", j.o.From, e.Seq, j.cfg.Node)}
	}
	j.o.Tell("waits until all nodes have what was committed before")
	q := &nodeQuestion{Ask: askAllKnow, Node: j.cfg.Node, Vector: seen.Vector, LSN: seen.LSN}
	if err := j.patiently(ctx, j.o.From, q, nil, j.o.Tell); err != nil {
		return err
	}
	var all []apply.CopyPart
	for i := range of.Tables {
		if of.Tables[i].Merged { // whole, with the delta
			continue
		}
		parts, err := j.cut(ctx, &of.Tables[i], columns[i])
		if err != nil {
			return err
		}
		all = append(all, parts...)
	}
	setup := applySetup(j.cfg)
	for _, e := range since { // of nodes, too, that are gone
		if e.Origin.Node != j.cfg.Node && !slices.Contains(setup.Peers, e.Origin.Node) {
			setup.Peers = append(setup.Peers, e.Origin.Node)
		}
	}
	if err := setUpApply(ctx, j.primary, setup); err != nil {
		return err
	}
	if err := j.joiner.Lock(ctx); err != nil {
		return err
	}
	if err := j.joiner.NoteGone(ctx, of.Gone); err != nil {
		return err
	}
	if err := j.joiner.NoteMade(ctx, of.Made); err != nil {
		return err
	}
	return j.joiner.Begin(ctx, j.o.From, since, all, j.o.Existing)
}

// originOf is a node as an origin.
func originOf(node string) origin.Origin { return origin.Origin{Node: node, Epoch: 1} }

// fit returns the columns of each table that are to be copied.
func (j *join) fit(ctx context.Context, tables []apply.CopyTable) ([][]string, error) {
	missing, err := j.joiner.Missing(ctx, tables)
	if err != nil {
		return nil, err
	}
	if len(missing) > 0 && j.o.SchemaDSN != "" {
		j.o.Tell(fmt.Sprintf("takes the schema over: %d tables are missing here", len(missing)))
		if err := takeSchema(ctx, j.o.SchemaDSN, j.cfg.Postgres.DSN); err != nil {
			return nil, err
		}
		if missing, err = j.joiner.Missing(ctx, tables); err != nil {
			return nil, err
		}
	}
	if len(missing) > 0 {
		return nil, &configError{fmt.Sprintf("tables of node %s are not here: %s; create them (pg_dump --schema-only there, psql here), or give --schema-dsn",
			j.o.From, strings.Join(missing, ", "))}
	}
	columns := make([][]string, len(tables))
	for i := range tables {
		t := &tables[i]
		if !chosen(j.cfg.Tables, t.Schema, t.Name) {
			return nil, &configError{fmt.Sprintf("node %s replicates table %s.%s, and tables leaves it out here; let all nodes have the same tables", j.o.From, t.Schema, t.Name)}
		}
		if columns[i], err = j.joiner.Fit(ctx, t); err != nil {
			var blocked *apply.Blocked
			if errors.As(err, &blocked) {
				err = &configError{err.Error()}
			}
			return nil, err
		}
		if j.o.Existing && !t.Merged {
			continue
		}
		if err := j.joiner.Empty(ctx, t); err != nil {
			return nil, err
		}
	}
	return columns, nil
}

// chosen reports whether patterns choose a table.
func chosen(patterns []string, schema, name string) bool {
	some := false
	for _, p := range patterns {
		if not, ok := strings.CutPrefix(p, "!"); ok {
			if capture.Matches(not, schema, name) {
				return false
			}
		} else {
			some = some || capture.Matches(p, schema, name)
		}
	}
	return some
}

// cut cuts a table into parts.
func (j *join) cut(ctx context.Context, t *apply.CopyTable, columns []string) ([]apply.CopyPart, error) {
	rows := t.Rows
	if rows == 0 { // or never analyzed
		rows = t.Bytes / 100
	}
	most := pageRows
	if j.o.Existing {
		most = offeredRows
	}
	page := max(1, min(int64(cmp.Or(j.o.PageRows, most)), pageBytes*max(rows, 1)/max(t.Bytes, 1)))
	var bounds [][]string
	if n := min(parts, rows/partRows); n > 1 {
		q := &nodeQuestion{Ask: askParts, Page: apply.CopyPage{Schema: t.Schema, Name: t.Name}, Parts: int(n), Rows: rows}
		if err := j.patiently(ctx, j.o.From, q, &bounds, j.o.Tell); err != nil {
			return nil, err
		}
	}
	bounds = append(bounds, nil)
	all := make([]apply.CopyPart, len(bounds))
	for i := range all {
		all[i] = apply.CopyPart{Schema: t.Schema, Name: t.Name, Part: i, Columns: columns, UpTo: bounds[i], About: rows / int64(len(bounds)), Page: int(page)}
		if i > 0 {
			all[i].At = bounds[i-1]
		}
	}
	return all, nil
}

// copyAll copies what is left.
func (j *join) copyAll(ctx context.Context, state *apply.Joining) error {
	left, err := j.joiner.Left(ctx)
	if err != nil {
		return err
	}
	if state.Done > 0 || state.Rows > 0 {
		j.o.Tell(fmt.Sprintf("goes on: %d rows are copied already", state.Rows))
	}
	if _, err := j.conn(ctx, j.o.From); err != nil {
		return err
	}
	g, ctx := errgroup.WithContext(ctx)
	work := make(chan *apply.CopyPart)
	g.Go(func() error {
		defer close(work)
		for i := range left {
			select {
			case work <- &left[i]:
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		}
		return nil
	})
	for range min(j.o.Jobs, len(left)) {
		g.Go(func() error { return j.copySome(ctx, state, work) })
	}
	done := make(chan struct{})
	told := make(chan struct{})
	go func() {
		defer close(told)
		j.tellProgress(state, done)
	}()
	err = g.Wait()
	close(done)
	<-told
	return err
}

// tellProgress tells how far copying has come until done is closed.
func (j *join) tellProgress(state *apply.Joining, done <-chan struct{}) {
	begun := time.Now()
	for {
		ended := false
		select {
		case <-j.moved:
		case <-done:
			ended = true
		}
		p := JoinProgress{Rows: state.Rows + j.rows.Load(), About: state.About, Bytes: state.Bytes + j.bytes.Load(), Took: time.Since(begun), Before: state.Rows}
		p.About = max(p.About, p.Rows)
		j.o.Progress(p)
		if ended {
			return
		}
	}
}

// copySome copies parts until there are no more.
func (j *join) copySome(ctx context.Context, state *apply.Joining, work <-chan *apply.CopyPart) error {
	l, err := j.joiner.NewLoader(ctx, state.Existing)
	if err != nil {
		return err
	}
	defer l.Close()
	file, err := j.pageFile()
	if err != nil {
		return err
	}
	defer file.Close()
	for p := range work {
		for done := false; !done; {
			if done, err = j.copyPage(ctx, l, p, state.Since, file); err != nil {
				return err
			}
		}
	}
	return nil
}

// pageFile makes a file without a name.
func (j *join) pageFile() (*os.File, error) {
	if err := os.MkdirAll(filepath.Join(j.cfg.DataDir, "spool"), 0o700); err != nil {
		return nil, fmt.Errorf("data_dir: %w; make it writable or choose another", err)
	}
	return deltaFile(&life{bridge: j.bridge})
}

// copyPage copies the next page of a part, and reports whether it was the last one.
func (j *join) copyPage(ctx context.Context, l *apply.Loader, p *apply.CopyPart, since origin.Vector, file *os.File) (bool, error) {
	q := &nodeQuestion{Ask: askPage, Vector: encodeVector(since), Page: apply.CopyPage{Schema: p.Schema, Name: p.Name, Columns: p.Columns, After: p.At, UpTo: p.UpTo, Rows: p.Page}}
	was, err := l.Offer(ctx, p)
	if err != nil {
		return false, err
	}
	if was != nil {
		q.Page.Have = was.Have
	}
	for tries := 1; ; tries++ {
		if _, err := file.Seek(0, io.SeekStart); err != nil {
			return false, fmt.Errorf("spool a page: %w", err)
		}
		if err := file.Truncate(0); err != nil {
			return false, fmt.Errorf("spool a page: %w", err)
		}
		size, end, err := j.page(ctx, j.o.From, q, file)
		if err == nil {
			rows, err := l.Load(ctx, p, io.NewSectionReader(file, 0, size), size, end, was)
			if err != nil {
				return false, err
			}
			j.rows.Add(rows)
			j.bytes.Add(size)
			select {
			case j.moved <- struct{}{}:
			default:
			}
			return end.Last == nil, nil
		}
		if ctx.Err() != nil || tries == pageTries {
			return false, err
		}
		j.log.Warn("page is not given, and asked for again", "table", p.Schema+"."+p.Name, "from", j.o.From, "err", err.Error())
		select {
		case <-time.After(pagesPause):
		case <-ctx.Done():
			return false, context.Cause(ctx)
		}
	}
}
