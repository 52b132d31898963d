# awk -f new_sources.awk KNOWN FILE: FILE, of deb822 sources with one suite and one type a stanza, without what KNOWN has.
# A line of KNOWN is "TYPE URI SUITE COMPONENT". How a place is reached does not count.
function place(uri) { sub(/^[a-z]+:\/\//, "", uri); sub(/\/+$/, "", uri); return uri }
function end_stanza(   count, parts, missing, i) {
    count = split(components == "" ? "-" : components, parts, " ")
    for (i = 1; i <= count; i++)
        if (!((type, place(uri), suite, parts[i]) in known)) missing = missing " " parts[i]
    if (stanza != "" && missing != "") {
        if (components != "") sub(/\nComponents:[^\n]*/, "\nComponents:" missing, stanza)
        printf "%s%s", written ? "\n" : "", stanza
        written = 1
    }
    stanza = type = uri = suite = components = ""
}
FILENAME == ARGV[1] { known[$1, place($2), $3, $4 == "" ? "-" : $4] = 1; next }
/^$/ { end_stanza(); next }
/^Types:/ { type = $2 }
/^URIs:/ { uri = $2 }
/^Suites:/ { suite = $2 }
/^Components:/ { components = substr($0, 13) }
{ stanza = stanza $0 "\n" }
END { end_stanza() }
