package bridge

import (
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/pgbridge/pgbridge/config"
)

// TestKeysAreMadeOnce: pgbridge keys makes what is missing or will not do any more, and leaves the rest.
func TestKeysAreMadeOnce(t *testing.T) {
	dir := t.TempDir()
	cfg := &config.Config{Cluster: "shop", Node: "a", Topology: config.Topology{Nodes: map[string]string{
		"a": "nats://10.0.0.1:4222, nats://10.0.0.3:4222", "b": "tls://b.example.com", "kiosk": ""}, Roles: map[string]string{"kiosk": "edge"}}}
	cfg.NATS.Links = map[string]config.Access{"b": {URL: "nats://10.9.0.2:4222"}}
	requireMade := func(want ...string) {
		t.Helper()
		var made []string
		if err := MakeKeys(cfg, dir, func(text string) { made = append(made, strings.ReplaceAll(text, dir+"/", "")) }); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(made, want) {
			t.Errorf("it has made %q, want %q", made, want)
		}
	}
	requireMade("makes ca.pem and ca.key", "makes a/node.nk", "makes a/frames.nk", "makes b/node.nk", "makes b/frames.nk", "makes kiosk/node.nk", "makes kiosk/frames.nk", "makes a/node.pem", "makes b/node.pem")
	requireMade()
	certificate := func(name string) *x509.Certificate {
		t.Helper()
		text, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		block, _ := pem.Decode(text)
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	roots := x509.NewCertPool()
	roots.AddCert(certificate("ca.pem"))
	for name, hosts := range map[string][]string{"a": {"10.0.0.1", "10.0.0.3"}, "b": {"b.example.com", "10.9.0.2"}} {
		for _, host := range hosts {
			if _, err := certificate(name + "/node.pem").Verify(x509.VerifyOptions{DNSName: host, Roots: roots, CurrentTime: time.Now().AddDate(4, 11, 0)}); err != nil {
				t.Errorf("node %s at %s: %v", name, host, err)
			}
		}
	}
	if _, err := os.Stat(filepath.Join(dir, "kiosk", "node.pem")); err == nil {
		t.Error("an edge has a certificate")
	}
	for _, secret := range []string{"ca.key", "a/node.nk", "a/frames.nk", "a/node.key"} {
		if st, err := os.Stat(filepath.Join(dir, secret)); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", secret, st, err)
		}
	}

	cfg.Topology.Nodes["c"] = "nats://10.0.0.4:4222"
	requireMade("makes c/node.nk", "makes c/frames.nk", "makes c/node.pem")
	for _, node := range []string{"a", "c", "kiosk"} {
		own := *cfg
		own.Node, own.NATS.KeysDir = node, filepath.Join(dir, node)
		k, err := readKeys(&own)
		if err != nil || len(k.users) != 4 || (k.tls == nil) != (node == "kiosk") {
			t.Fatalf("node %s: %+v, %v", node, k, err)
		}
		if users := k.serverUsers(&own); len(users) != 4 || users[0].NKey != k.users[node] {
			t.Errorf("node %s lets in %+v", node, users)
		}
	}
	cfg.Topology.Nodes["a"] = "nats://10.0.0.9:4222"
	requireMade("makes a/node.pem")

	for what, x := range map[string]struct {
		change func(c *config.Config)
		want   string
	}{
		"no directory":    {func(c *config.Config) { c.NATS.KeysDir = filepath.Join(dir, "x") }, "nats.keys_dir: open "},
		"another node's":  {func(c *config.Config) { c.NATS.KeysDir = filepath.Join(dir, "b") }, "is not the key of node a"},
		"an unknown node": {func(c *config.Config) { c.Topology.Nodes = map[string]string{"a": "", "z": ""} }, "has no key of node z"},
		"no nodes in it":  {func(c *config.Config) { c.NATS.KeysDir = spoilt(t, dir, "a", "nodes", "a b c\n") }, "line 1 of nodes is not a node and its public nkey"},
		"no seed in it":   {func(c *config.Config) { c.NATS.KeysDir = spoilt(t, dir, "a", "node.nk", "SU") }, "is not the key of node a"},
		"no certificate":  {func(c *config.Config) { c.NATS.KeysDir = spoilt(t, dir, "a", "node.pem", "") }, "failed to find any PEM data"},
		"another's secret": {func(c *config.Config) {
			c.NATS.KeysDir = spoilt(t, dir, "a", "node.key", readAll(t, filepath.Join(dir, "b", "node.key")))
		}, "private key does not match public key"},
	} {
		own := *cfg
		own.NATS.KeysDir = filepath.Join(dir, "a")
		x.change(&own)
		if _, err := readKeys(&own); err == nil || !permanent(err) || !strings.Contains(err.Error(), x.want) || !strings.Contains(err.Error(), "; run pgbridge keys") {
			t.Errorf("%s: %v, want %s", what, err, x.want)
		}
	}
	for what, x := range map[string]struct {
		change func(c *config.Config)
		want   string
	}{
		"no directory":   {func(c *config.Config) { c.NATS.KeysDir = filepath.Join(dir, "x") }, "nats.keys_dir: open "},
		"another node's": {func(c *config.Config) { c.NATS.KeysDir = filepath.Join(dir, "b") }, "frames.nk is not the key of node a that signers has"},
		"the one for server": {func(c *config.Config) {
			c.NATS.KeysDir = spoilt(t, dir, "a", "frames.nk", readAll(t, filepath.Join(dir, "a", "node.nk")))
		}, "frames.nk is not the key of node a"},
		"an unknown node": {func(c *config.Config) { c.Topology.Nodes = map[string]string{"a": "", "z": ""} }, "signers has no key of node z"},
		"no key":          {func(c *config.Config) { c.NATS.KeysDir = spoilt(t, dir, "a", "frames.nk", "SU") }, "frames.nk is not the key of node a"},
		"no signers":      {func(c *config.Config) { c.NATS.KeysDir = spoilt(t, dir, "a", "signers", "a\n") }, "line 1 of signers is not a node and its public nkey"},
		"none":            {func(c *config.Config) { c.Stream.Signatures = config.SignaturesNone }, ""},
	} {
		own := *cfg
		own.NATS.KeysDir, own.Stream.Signatures = filepath.Join(dir, "a"), config.SignaturesRequire
		if s, err := readSigning(&own); err != nil || s.signer == nil || s.verifier == nil {
			t.Fatal(err)
		}
		x.change(&own)
		switch s, err := readSigning(&own); {
		case x.want == "" && (err != nil || s.signer != nil || s.verifier != nil):
			t.Errorf("%s: %v", what, err)
		case x.want != "" && (err == nil || !permanent(err) || !strings.Contains(err.Error(), x.want) || !strings.Contains(err.Error(), "; run pgbridge keys")):
			t.Errorf("%s: %v, want %s", what, err, x.want)
		}
	}
	if err := os.Remove(filepath.Join(dir, "ca.key")); err != nil {
		t.Fatal(err)
	}
	if err := MakeKeys(cfg, dir, func(string) {}); err == nil || !strings.Contains(err.Error(), "where the authority's key is") {
		t.Errorf("without the authority's key: %v", err)
	}
}

// spoilt copies a node's directory with another content of one file.
func spoilt(t *testing.T, dir, node, name, content string) string {
	t.Helper()
	to := t.TempDir()
	if err := os.CopyFS(filepath.Join(to, node), os.DirFS(filepath.Join(dir, node))); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(to, node, name), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(to, node)
}

func readAll(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}
