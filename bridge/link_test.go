package bridge

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nats-io/nkeys"

	"github.com/pgbridge/pgbridge/config"
	"github.com/pgbridge/pgbridge/integration/natstest"
)

func file(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// nkey makes a user's key: the file of its seed, and its public part.
func nkey(t *testing.T) (seedFile, public string) {
	t.Helper()
	pair, err := nkeys.CreateUser()
	if err != nil {
		t.Fatal(err)
	}
	seed, err := pair.Seed()
	if err == nil {
		public, err = pair.PublicKey()
	}
	if err != nil {
		t.Fatal(err)
	}
	return file(t, string(seed)), public
}

// hearer is a log that tells that something was logged.
type hearer chan struct{}

func (c hearer) Enabled(context.Context, slog.Level) bool { return true }
func (c hearer) WithAttrs([]slog.Attr) slog.Handler       { return c }
func (c hearer) WithGroup(string) slog.Handler            { return c }

func (c hearer) Handle(_ context.Context, r slog.Record) error {
	if strings.HasPrefix(r.Message, "link is ") {
		c <- struct{}{}
	}
	return nil
}

// TestLinksOpen: a link opens with its own credentials and certificates, and what is wrong with them is said by name, with what to do.
func TestLinksOpen(t *testing.T) {
	ours, theirs := natstest.NewAuthority(t), natstest.NewAuthority(t)
	seed, public := nkey(t)
	other, _ := nkey(t)
	cert, key := ours.Certificate(t, "b")
	plain := natstest.NewWith(t, natstest.Options{User: "b", Secret: "s3cret"}).URL()
	keyed := natstest.NewWith(t, natstest.Options{Users: []natstest.User{{NKey: public}}}).URL()
	secure := natstest.NewWith(t, natstest.Options{TLS: ours.Server(t, "127.0.0.1", false)}).URL()
	verified := natstest.NewWith(t, natstest.Options{TLS: ours.Server(t, "127.0.0.1", true)}).URL()
	elsewhere := natstest.NewWith(t, natstest.Options{TLS: ours.Server(t, "127.0.0.9", false)}).URL()
	for _, x := range []struct {
		name, url string
		access    config.Access
		want      string // of the fault; empty: it opens
	}{
		{"password", plain, config.Access{User: "b", Password: "s3cret", PasswordFile: "/pw"}, ""},
		{"wrong password", plain, config.Access{User: "b", Password: "x", PasswordFile: "/pw"}, "the NATS server of node a refuses this node's credentials (nats: Authorization Violation); correct nats.links.a.password_file (/pw), or let that server know of them"},
		{"no credentials", plain, config.Access{}, "correct nats.token or nats.creds_file, or nats.links.a, or"},
		{"nkey", keyed, config.Access{NKeyFile: seed}, ""},
		{"wrong nkey", keyed, config.Access{NKeyFile: other}, "correct nats.links.a.nkey_file (" + other + ")"},
		{"authority", secure, config.Access{CAFile: ours.CAFile}, ""},
		{"unknown authority", secure, config.Access{}, "is of an authority that is not known here; name that one's certificate as nats.links.a.ca_file"},
		{"another authority", secure, config.Access{CAFile: theirs.CAFile}, "is of an authority that is not known here; name that one's certificate as nats.links.a.ca_file"},
		{"another host", elsewhere, config.Access{CAFile: ours.CAFile}, "is for another host"},
		{"certificate", verified, config.Access{CAFile: ours.CAFile, CertFile: cert, KeyFile: key}, ""},
		{"no certificate", verified, config.Access{CAFile: ours.CAFile}, "does not take this node's certificate"},
		{"no TLS there", plain, config.Access{CAFile: ours.CAFile, User: "b", Password: "s3cret"}, "the NATS server of node a has no TLS"},
		{"nobody there", "nats://127.0.0.1:1", config.Access{}, "the NATS server of node a cannot be reached"},
	} {
		t.Run(x.name, func(t *testing.T) {
			t.Parallel()
			cfg := &config.Config{Cluster: "x", Node: "b"}
			cfg.NATS.Links = map[string]config.Access{"a": x.access}
			heard := make(hearer, 100)
			b := &bridge{cfg: cfg, log: slog.New(heard)}
			b.links.faults = map[string]string{"a": "nothing is known yet"}
			nc, err := b.connect(x.url, "a")
			if err != nil {
				t.Fatal(err)
			}
			defer nc.Close()
			<-heard
			if got := b.linkFault("a"); (got == "") != (x.want == "") || !strings.Contains(got, x.want) || strings.Contains(got, "s3cret") {
				t.Errorf("fault %q, want %q", got, x.want)
			}
		})
	}
}

// TestLinksAreChecked: files that hold no credentials end the bridge at once, with exit code 2.
func TestLinksAreChecked(t *testing.T) {
	seed, _ := nkey(t)
	bad := file(t, "no seed")
	for want, a := range map[string]config.Access{
		"": {NKeyFile: seed},
		"nats.links.a: " + bad + " is no NATS credentials file": {CredsFile: bad},
		"nats.links.a: " + bad + " holds no nkey seed":          {NKeyFile: bad},
	} {
		cfg := &config.Config{Cluster: "x", Node: "b"}
		cfg.NATS.Links = map[string]config.Access{"a": a}
		err := (&bridge{cfg: cfg, log: slog.New(slog.DiscardHandler)}).checkLinks()
		if (err == nil) != (want == "") || err != nil && !strings.HasPrefix(err.Error(), want) {
			t.Errorf("%v, want %q", err, want)
		}
		if err != nil && !permanent(err) {
			t.Errorf("%v does not end the bridge", err)
		}
	}
	cfg := &config.Config{Cluster: "x", Node: "b"}
	cfg.NATS.CredsFile = bad
	if err := (&bridge{cfg: cfg}).checkLinks(); err == nil || !permanent(err) || !strings.HasPrefix(err.Error(), "nats.creds_file: "+bad) {
		t.Errorf("credentials for all: %v", err)
	}
}
