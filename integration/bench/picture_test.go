package main

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"strings"
	"testing"
)

// texts reads an SVG to its end and returns the content of its text elements.
func texts(t *testing.T, svg []byte) []string {
	t.Helper()
	var all []string
	inText := false
	for d := xml.NewDecoder(bytes.NewReader(svg)); ; {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			return all
		}
		if err != nil {
			t.Fatalf("not well-formed: %v\n%s", err, svg)
		}
		switch token := token.(type) {
		case xml.StartElement:
			inText = token.Name.Local == "text"
		case xml.EndElement:
			inText = false
		case xml.CharData:
			if inText {
				all = append(all, string(token))
			}
		}
	}
}

func TestPictureHoldsEachLine(t *testing.T) {
	r := testReport()
	r.Lines[0].Title = "less < more & more"
	r.Lines[1].add(pgbridgeName, sample{Error: "not converged"})
	shown := texts(t, r.picture())
	for _, l := range r.Lines {
		if !strings.Contains(strings.Join(shown, "\n"), l.Title) {
			t.Errorf("no title %q in %q", l.Title, shown)
		}
	}
	if !strings.Contains(strings.Join(shown, "\n"), "pgbridge failed") {
		t.Errorf("a failed line is not told: %q", shown)
	}
}

func TestPictureOfNothing(t *testing.T) {
	texts(t, (&report{}).picture())
}

func TestBarsStayWithinThePicture(t *testing.T) {
	r := &report{Lines: []*result{newResult(lines()[0], 1)}}
	r.Lines[0].add(nativeName, sample{Seconds: 10})
	r.Lines[0].add(pgbridgeName, sample{Seconds: 3})
	if p := (picture{axis: r.axis()}); r.axis() != 4 || p.at(10.0/3) > barsRight {
		t.Errorf("axis to %v, bar to %v", r.axis(), p.at(10.0/3))
	}
}
