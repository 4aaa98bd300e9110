// Verifies a checkpoint, or that a leaf is in a log, with golang.org/x/mod/sumdb alone.
//
// Usage: tlogverify VKEY CHECKPOINT
//
//	tlogverify VKEY PROOF LEAF
//
// VKEY is the log's key as a line of text, CHECKPOINT a signed note, PROOF a .tlog-proof, LEAF the bytes of an entry.
package main

import (
	"fmt"
	"os"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"
)

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, "NOT verified:", err)
		os.Exit(1)
	}
}

func read(path string) string {
	data, err := os.ReadFile(path)
	check(err)
	return string(data)
}

// head verifies a note by the key and returns size and root of the tree it is about.
func head(vkey, text string) (int64, tlog.Hash) {
	verifier, err := note.NewVerifier(strings.TrimSpace(vkey))
	check(err)
	opened, err := note.Open([]byte(text), note.VerifierList(verifier))
	check(err)
	lines := strings.Split(opened.Text, "\n")
	if len(lines) != 4 || lines[0] != verifier.Name() {
		check(fmt.Errorf("a checkpoint of another log, or none: %q", opened.Text))
	}
	size, err := strconv.ParseInt(lines[1], 10, 64)
	check(err)
	root, err := tlog.ParseHash(lines[2])
	check(err)
	return size, root
}

func main() {
	switch len(os.Args) {
	case 3:
		size, root := head(read(os.Args[1]), read(os.Args[2]))
		fmt.Printf("verified: %d entries, root %v\n", size, root)
	case 4:
		top, checkpoint, found := strings.Cut(read(os.Args[2]), "\n\n")
		lines := strings.Split(top, "\n")
		if !found || len(lines) < 2 || lines[0] != "c2sp.org/tlog-proof@v1" {
			check(fmt.Errorf("not a .tlog-proof"))
		}
		index, err := strconv.ParseInt(strings.TrimPrefix(lines[1], "index "), 10, 64)
		check(err)
		var path tlog.RecordProof
		for _, line := range lines[2:] {
			hash, err := tlog.ParseHash(line)
			check(err)
			path = append(path, hash)
		}
		size, root := head(read(os.Args[1]), checkpoint)
		check(tlog.CheckRecord(path, size, root, index, tlog.RecordHash([]byte(read(os.Args[3])))))
		fmt.Printf("verified: entry %d of %d\n", index, size)
	default:
		check(fmt.Errorf("usage: tlogverify VKEY CHECKPOINT | VKEY PROOF LEAF"))
	}
}
