# sources.list(5) as mmdebstrap wrote it, with the addresses that this build was told: `mirror` for the suite and
# its updates, `security` for its security updates ("none": without them). One that is empty changes nothing.
$1 != "deb" { print; next }
{
    uri = $2 ~ /^\[/ ? 3 : 2
    is_security = $(uri + 1) ~ /(-security|\/updates)$/
    if (is_security && security == "none") next
    address = is_security ? security : mirror
    if (address != "") $uri = address
    print
}
