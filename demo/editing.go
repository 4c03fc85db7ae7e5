package demo

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"

	"github.com/jackc/pgx/v5"

	"github.com/pgbridge/pgbridge/demo/editor"
)

// firstText is what the document holds at first.
const firstText = "Type into any pane.\n\nCut a node off, type on both sides, and bring it back: what both have typed is there.\n"

var document = &world{name: "editor", schema: editor.Schema + `
CREATE TABLE editor.checkpoints (
    node  text PRIMARY KEY,
    round int NOT NULL
);`, tables: "one row, whose text is edited", try: "UPDATE editor.document SET body = body || 'more'"}

const editorConfig = `conflict:
  tables:
    ` + editor.Table + `:
      columns:
        ` + editor.Column + `: text_merge
`

// editor is the script of that name.
func (d *demo) editor(ctx context.Context) error {
	d.screen.say("pgbridge demo: one text that is edited on %d nodes, PostgreSQL %s", d.opts.Nodes, d.install.Version)
	d.screen.title("Set-up")
	return inOrder(
		func() error { return d.startServers(ctx, document) },
		func() error { return d.startBridges(ctx, "a mesh", editorConfig) },
		func() error { return d.firstText(ctx) },
		func() error { return d.serveEditor(ctx) },
		func() error { return d.compareTexts(ctx) },
	)
}

func (d *demo) firstText(ctx context.Context) error {
	n := d.nodes[0]
	if _, err := n.conn.Exec(ctx, `INSERT INTO document (id, body) VALUES (1, $1)`, firstText); err != nil {
		return fmt.Errorf("insert the text on node %s: %w", n.name, err)
	}
	n.ledger.note(tally{inserts: 1})
	return d.checkpoint(ctx)
}

// serveEditor serves the page until ctx ends.
func (d *demo) serveEditor(ctx context.Context) error {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return fmt.Errorf("listen for the editor: %w", err)
	}
	d.screen.title("Everybody edits one text")
	d.screen.say("Open http://%s in a browser: a pane for each node.", l.Addr())
	d.screen.say("Ctrl-C ends it: then the texts are compared, and everything is removed.")
	var mu sync.Mutex
	var refused []string // guarded by mu
	var nodes []editor.Node
	for _, n := range d.nodes {
		nodes = append(nodes, editor.Node{Name: n.name,
			Connect:   func(ctx context.Context) (*pgx.Conn, error) { return n.connect(ctx) },
			Committed: func() { n.ledger.note(tally{updates: 1}) },
			Refused: func(err error) {
				mu.Lock()
				defer mu.Unlock()
				refused = append(refused, fmt.Sprintf("node %s did not take what was typed: %v", n.name, err))
			},
			Cut: func(ctx context.Context, off bool) error { return d.cutOff(ctx, n, off) },
		})
	}
	err = editor.Serve(ctx, l, nodes)
	for _, why := range refused {
		d.screen.say("%s", why)
	}
	return err
}

// cutOff stops a node's bridge, or starts it again. Its server runs on.
func (d *demo) cutOff(ctx context.Context, n *node, off bool) error {
	if off {
		n.bridge.stop(bridgeTimeout)
		return nil
	}
	if err := n.startBridge(d.opts.Executable); err != nil {
		return err
	}
	return n.awaitBridge(ctx)
}

// compareTexts brings back who is cut off, and compares. It is what Ctrl-C leads to, so that ctx does not end it; a second Ctrl-C ends the program.
func (d *demo) compareTexts(ctx context.Context) error {
	ctx = context.WithoutCancel(ctx)
	for _, n := range d.nodes {
		if n.bridge.running() {
			continue
		}
		if err := d.cutOff(ctx, n, false); err != nil {
			return err
		}
	}
	if err := d.judge(ctx); err != nil {
		return err
	}
	var text string
	if err := d.nodes[0].conn.QueryRow(ctx, `SELECT body FROM document WHERE id = 1`).Scan(&text); err != nil {
		return fmt.Errorf("read the text: %w", err)
	}
	d.screen.title("The text")
	d.screen.say("%s", strings.TrimRight(text, "\n"))
	return nil
}
