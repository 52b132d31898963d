"""The file of a project, bough.toml: machines and networks that belong together. Pure.

client/project_file.py reads the file: variables, paths, files
-> parse_project (parse.py) -> ProjectSpec (model.py) -> start_order (order.py)

compare_projects (changes.py)   the difference between two versions of a project
render_config (render.py)       the resolved project as TOML
find_lines (lines.py)           the line of each setting, for messages
"""
